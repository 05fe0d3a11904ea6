"""`python -m finetwo` is the command `finetwo`."""

from finetwo.app.cli import entry

if __name__ == "__main__":
    entry()
