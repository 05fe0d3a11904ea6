"""The content words of the word games: common, short, lower-case English words of any period.

The lists know nothing of the games. Their one invariant is that no word stands twice, in one list or in two, and
that a noun here is never an everyday verb, nor a verb an everyday noun.
"""

from __future__ import annotations

from typing import Final

NOUNS: Final[tuple[str, ...]] = tuple(
    """
    accident adventure advice ambition angel anxiety apple army artist atmosphere aunt authority autumn basket
    bedroom bell bishop blood boat body bonnet boy brain bread breath breeze brother butler cabin candle carpet
    carriage castle cat century chamber chapel cheek child childhood chimney chin church cigar city clerk cliff
    coffee college companion conscience contempt corpse cottage cotton countess country county courage courtesy
    cousin coward creature crime curtain custom danger darkness daughter dawn desk devil diamond dignity dinner
    door dozen duty ear earl editor egg emotion enemy energy estate evening event fairy fame family farmer fate
    feather fever forehead forest fortnight fortune freedom friend frost fruit furniture gallery gate genius
    gentleman ghost girl glory gold goodness governess gown grass grief guest habit hair happiness hat health
    heart heaven hero hill honesty horse hospital hostess hotel hour household idea illness income infant inn
    instinct intellect island jacket jealousy joy justice kindness king kitchen kitten knee ladder lady lake lamb
    lamp landlord language lantern law lawyer leaf lesson letter liberty library lightning linen lion lip
    literature loneliness lover luck luxury madness magic maid majesty mansion marble marriage meadow meal member
    memory mercy method midnight mile mischief misery mist moment money month moon morning motive mountain music
    mystery nation nature neck neighbour nephew newspaper niece night noon nun oak ocean officer opinion palace
    parent parlour passion path penny piano pig pillow pistol pleasure poet policeman pony portrait poverty prayer
    priest prince princess prison property pupil queen railway rat reader religion reputation river road roof
    sadness safety saint sand science sea secret secretary servant shawl sheep shilling shirt shore silk sister
    sky society sofa solitude son song sorrow soul spirit stair statue story stranger street summer sun sunlight
    sunset supper sword sympathy tale talent tea teacher tent terror theatre theory throat tiger tobacco tomb
    tongue town tragedy tree truth twilight uncle valley vanity velvet vessel vice victim victory village virtue
    vision visitor wealth wedding week widow wife window wine winter wisdom wit woman wrath year youth
    """.split()
)
"""Things and persons that stand after "the" and are not everyday verbs."""

VERBS: Final[tuple[str, ...]] = tuple(
    """
    accept accompany admire admit adopt advise afford agree allow alter amuse annoy appear arrange arrive
    ascertain assert assist assure attend attract avoid become begin behave believe betray bind bring carry cease
    choose collect conceal confess consider decide declare deliver deny depart depend describe deserve destroy
    dine discover discuss dismiss disturb dwell earn eat employ enable encourage endure engage enjoy enter
    entertain entreat examine exert exist expect explain fetch flatter forbid forget forgive gather grow happen
    hear hesitate imagine impress improve induce inform inquire insist intend interfere invent know learn lend
    listen lose manage marry mourn obey observe obtain occur perceive perform persist persuade please possess pray
    prefer prepare presume pretend prevent proceed propose protect prove punish quit receive reckon recollect
    recommend recover refer reflect refresh remain remember remind render repent represent require resent resist
    respond satisfy seek seem sell send sing speak spend submit succeed suffer suggest summon suppose surround
    swear teach tempt thank think tremble understand vanish vex wander warn wear weep write
    """.split()
)
"""Verbs in the base form that are not everyday nouns."""

ADJECTIVES: Final[tuple[str, ...]] = tuple(
    """
    absurd active afraid alive alone ancient angry anxious ashamed asleep bad beautiful bitter blind blue bold
    brave bright brilliant broken brutal busy calm careful careless charming cheap cheerful childish civil clean
    clever cold cruel curious damp dangerous dark dead deep delicate delicious delightful dim dirty distant
    dreadful dry dull eager early elegant empty enormous excellent faint faithful false familiar famous feeble
    fierce foolish fortunate frank fresh funny generous gentle genuine glad gloomy golden good graceful grateful
    great green grey grim guilty handsome happy healthy heavy hidden high hollow holy honest hopeless horrible hot
    huge humble hungry idle impatient important innocent jealous large late lazy lively lonely long loud lovely
    loyal lucky mad merry mild miserable modest mysterious narrow natural neat nervous new noble odd old ordinary
    pale patient peculiar perfect pink plain pleasant polite poor precious pretty proud pure purple quick quiet
    rapid rare ready real red remarkable remote restless rich ridiculous rough round royal rude sacred sad safe
    scarlet secure selfish sensible serious severe shabby sharp short shy sick silent silly simple sincere sleepy
    slender slow small smooth sober soft solemn solid sour splendid steady steep stern stout strange strong sudden
    sullen sunny supreme sweet tall tame tender terrible thick thin timid tiny tired tranquil true unhappy unknown
    upright useful useless vain vast vivid vulgar warm weak weary wet wicked wide wild wise wonderful wooden
    worthy wretched young
    """.split()
)
"""What may be said of a noun after "is"."""
