"""Curves, configuration and samples of a run as TensorBoard reads them, in the folder `tensorboard` of the run.

It uses the package's record format and messages only, so no TensorFlow is loaded even where it is installed. Its one
invariant: every start writes a file of its own, and steps that a resumed run takes again replace those of before.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from finetwo.train.tracker import Opening, Sample, Tracker, require

FOLDER = "tensorboard"


def make(run: Path) -> Tracker:
    """Return the listener; InputError where the package is missing."""
    require("tensorboard", "tensorboard")
    return Tracker("tensorboard", run, EventFile())


class EventFile:
    """A sink that writes one event file."""

    def __init__(self) -> None:
        self._file: BinaryIO | None = None
        self._records: Any = None

    def open(self, opening: Opening) -> None:
        """Make the next event file of the run, its header and the configuration."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = opening.run / FOLDER
        folder.mkdir(exist_ok=True)
        number = 1 + len(list(folder.glob("events.out.tfevents.*")))  # files are read in the order of their names
        self._file = (folder / f"events.out.tfevents.{number:06d}").open("xb")
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"), 0)
        first = opening.resumed + 1 if opening.resumed else 0
        self._write(Event(session_log=SessionLog(status=SessionLog.START)), first)  # what came later is forgotten
        if opening.config:
            self._texts(opening.resumed, {"config": _code(opening.config)})

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """Write one event that holds every figure."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        found = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(Event(summary=Summary(value=found)), step)

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Write each sample under its number, so that it can be followed over the steps."""
        texts = {
            f"samples/{number:02d}": f"**prompt**\n\n{_code(s.prompt)}\n\n**answer**\n\n{_code(s.answer)}"
            for number, s in enumerate(samples, 1)
        }
        self._texts(step, texts)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _texts(self, step: int, texts: Mapping[str, str]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING

        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        found = []
        for name, text in texts.items():
            content = [text.encode("utf-8", "replace")]
            tensor = TensorProto(dtype=DT_STRING, string_val=content, tensor_shape=TensorShapeProto())
            found.append(Summary.Value(tag=name, metadata=metadata, tensor=tensor))
        self._write(Event(summary=Summary(value=found)), step)

    def _write(self, event: Any, step: int) -> None:
        assert self._file is not None
        event.step, event.wall_time = step, time.time()
        self._records.write(event.SerializeToString())
        self._file.flush()


def _code(text: str) -> str:
    """Text as a block of Markdown that shows it as it stands."""
    return "\n".join(f"    {line}" for line in text.split("\n"))
