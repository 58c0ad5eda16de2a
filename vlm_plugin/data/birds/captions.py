"""Writes and reads the captions of synthetic birds."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vlm_plugin.data.birds.attributes import ATTRIBUTES, value_index

# The parts that colours of the plumage belong to.
PLUMAGE = ("crown", "back", "wings", "breast")
# Nouns for each part. The tail has the back's colour, so naming it names the back.
NOUNS = {
    "crown": ("crown", "crown", "cap"),
    "back": ("back", "back", "tail"),
    "wings": ("wings",),
    "breast": ("breast", "belly", "chest"),
    "bill": ("bill", "beak"),
}
# Words for the values whose word is not the value itself: entry k of one value matches entry k of the other.
_SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
# How often sentences name an attribute, in no unit.
_WEIGHTS = {
    "crown": 4.0,
    "back": 3.5,
    "wings": 4.0,
    "breast": 4.0,
    "bill": 2.0,
    "bill_length": 1.5,
    "size": 2.0,
    "background": 1.5,
}
# How many attributes a sentence names, and how often, in no unit.
_COUNTS, _COUNT_WEIGHTS = (2, 3, 4, 5), (3, 4, 3, 1.5)

# The sentences. {size} is empty or ends in a blank, {things} is the list of parts.
_FORMS = (
    "this is a {size}bird with {things}",
    "a {size}bird with {things}",
    "this {size}bird has {things}",
    "the {size}bird has {things}",
    "a {size}bird that has {things}",
    "this {size}bird shows {things}",
    "here is a {size}bird which has {things}",
    "a photo of a {size}bird with {things}",
    "you can see {things} on this {size}bird",
)
# Short sentences may put one part by itself; {rest} is the list of the others.
_APART = (
    "the {noun} of this {size}bird {verb} {value} and it has {rest}",
    "this {size}bird has {rest} and its {noun} {verb} {value}",
)
# The background nouns carry no colour word ("green leaves"): a colour in a caption always belongs to the bird.
_BEHIND = (
    "in front of the {background}",
    "against the {background}",
    "with the {background} behind it",
    "and you see the {background} behind it",
)
# Of these, every one of the first line goes with every one of the second.
_STARTS = ("this is a {size}bird", "a {size}bird", "there is a {size}bird")
_POSTURES = (
    "perched in front of the {background} with {things}",
    "sitting on a branch in front of the {background} with {things}",
    "resting before the {background} with {things}",
)
# Longer sentences are not drawn where a shorter one says the same: a text encoder keeps 18 words.
_MOST_WORDS = 18


def draw_named(rng: random.Random) -> tuple[str, ...]:
    """Draws which attributes a sentence names: 2 to 5 of the eight, at least one of crown, back, wings, breast.

    Returns:
        The names in the order of `ATTRIBUTES`.
    """
    count = rng.choices(_COUNTS, _COUNT_WEIGHTS)[0]
    while True:
        # Weighted draw without replacement: the largest of u ** (1 / weight).
        keys = {name: rng.random() ** (1 / weight) for name, weight in _WEIGHTS.items()}
        chosen = set(sorted(keys, key=lambda name: -keys[name])[:count])
        if chosen & set(PLUMAGE):
            return tuple(name for name in ATTRIBUTES if name in chosen)


def sentence(values: Mapping[str, str], wording: int) -> str:
    """The English sentence that names these attributes, and no others.

    It is a pure function; `wording` picks template, order and synonyms without a look at the values. So two calls that
    differ in one value differ in that value's word and in nothing else.

    Args:
        values: named attribute -> value; at least one of crown, back, wings, breast, bill, bill_length.
        wording: any integer.

    Returns:
        One lower-case sentence that ends in a full stop.

    Raises:
        ValueError: an unknown attribute or value, or no part of the bird is named.
    """
    parts = _named_parts(values)
    rng = random.Random(wording)
    rng.shuffle(parts)
    # "a crown that is red" is long: at most once, and only in short sentences.
    spread = rng.choice(parts) if len(values) <= 3 and rng.random() < 0.25 else None
    nouns = {name: rng.choice(NOUNS[name]) for name in parts}
    size_choice = rng.randrange(2)
    things = [_thing(values, name, nouns[name], name == spread) for name in parts]
    first = parts[0]
    words = {
        "size": _SIZE_WORDS[values["size"]][size_choice] + " " if "size" in values else "",
        "things": _listing(things),
        "rest": _listing(things[1:]),
        "noun": nouns[first],
        "verb": _verb(first),
        "value": values.get(first),
        "background": values.get("background"),
    }
    forms = list(_FORMS)
    if first != "bill" and len(parts) > 1 and spread is None and len(values) <= 4:
        forms += _APART
    if "background" in values:
        forms = [f"{form} {behind}" for form in forms for behind in _BEHIND]
        forms += [f"{start} {posture}" for start in _STARTS for posture in _POSTURES]
    # Every value is one word, so the length does not depend on the values either.
    said = [form.format(**words) for form in forms]
    shortest = min(len(text.split()) for text in said)
    return rng.choice([text for text in said if len(text.split()) <= max(_MOST_WORDS, shortest)]) + "."


def _named_parts(values: Mapping[str, str]) -> list[str]:
    """The parts of the bird that a sentence about these attributes is about; errors as those of `sentence`."""
    unknown = [name for name in values if name not in ATTRIBUTES]
    if unknown:
        raise ValueError(f"values: expected attributes among {', '.join(ATTRIBUTES)}, got {unknown[0]!r}")
    for name in values:
        value_index(values, name)
    named = [name for name in ATTRIBUTES if name in values]
    parts = [name for name in named if name in PLUMAGE]
    if "bill" in values or "bill_length" in values:
        parts.append("bill")
    if not parts:
        raise ValueError(
            f"values: expected at least one part of the bird (crown, bill, ...), got only {', '.join(named)}"
        )
    return parts


def _thing(values: Mapping[str, str], name: str, noun: str, spread: bool) -> str:
    """A part with its adjectives: "a red crown", "wings that are red" if `spread`, "a long black bill"."""
    article = "" if name == "wings" else "a "
    if name == "bill":
        return article + " ".join([*(values[key] for key in ("bill_length", "bill") if key in values), noun])
    return f"{article}{noun} that {_verb(name)} {values[name]}" if spread else f"{article}{values[name]} {noun}"


def _verb(name: str) -> str:
    return "are" if name == "wings" else "is"


def _listing(things: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(things[:-1]), *things[-1:]]))


def read_caption(caption: str) -> dict[str, str]:
    """The attributes that a sentence made here names, with their values, in the order of `ATTRIBUTES`."""
    found = {}
    for name in ATTRIBUTES:
        span = _find(caption, name)
        if span is not None:
            word = caption[span[0] : span[1]]
            found[name] = word
            if name == "size":
                found[name] = next(value for value, words in _SIZE_WORDS.items() if word in words)
    return found


def said_by(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """What sentences made here claim, as tensors.

    Args:
        captions: B sentences, true or not.

    Returns:
        (B, A) int64 value indices (0 where an attribute is not named), and (B, A) bool, True where it is named;
        attributes in the order of `ATTRIBUTES`.
    """
    values = torch.zeros(len(captions), len(ATTRIBUTES), dtype=torch.long, device="cpu")
    named = torch.zeros(len(captions), len(ATTRIBUTES), dtype=torch.bool, device="cpu")
    columns = {name: column for column, name in enumerate(ATTRIBUTES)}
    for row, caption in enumerate(captions):
        for name, value in read_caption(caption).items():
            values[row, columns[name]] = ATTRIBUTES[name].index(value)
            named[row, columns[name]] = True
    return values, named


def swap_caption(caption: str, named: Sequence[str], values: Mapping[str, str], rng: random.Random) -> tuple[str, str]:
    """Exchanges exactly one named value of a sentence for another value of the same attribute.

    The value's word is found beside its noun, so it works when two parts share a colour.

    Args:
        caption: a sentence made by `sentence`, from disk or not.
        named: the attributes it names.
        values: the values it gives them (more attributes do no harm: a picture's values will do).
        rng: picks the attribute and its new value.

    Returns:
        The sentence with one value exchanged, and the attribute that was exchanged.

    Raises:
        ValueError: nothing is named, or the caption does not say what `named` and `values` claim.
    """
    if not named:
        raise ValueError("named: expected at least one attribute, got none")
    said = read_caption(caption)
    for name in named:
        if name not in ATTRIBUTES:
            raise ValueError(f"named: expected attributes among {', '.join(ATTRIBUTES)}, got {name!r}")
        if said.get(name) != values.get(name):
            raise ValueError(
                f"caption: expected {name} = {values.get(name)!r} in {caption!r}, found {said.get(name)!r}"
            )
    attribute = rng.choice([name for name in ATTRIBUTES if name in named])
    value = rng.choice([value for value in ATTRIBUTES[attribute] if value != values[attribute]])
    span = _find(caption, attribute)
    assert span is not None  # `said` has it
    word = value
    if attribute == "size":
        word = _SIZE_WORDS[value][_SIZE_WORDS[values["size"]].index(caption[slice(*span)])]
    return caption[: span[0]] + word + caption[span[1] :], attribute


def swap_word(values: Mapping[str, str], named: Sequence[str], rng: random.Random | int) -> tuple[str, str, str]:
    """A true sentence about a picture and its twin that is false in one word.

    Args:
        values: the picture's attributes.
        named: the attributes to name, at least one part of the bird among them.
        rng: a generator, or a seed for one.

    Returns:
        The true sentence, the same sentence with one value exchanged, and the attribute that was exchanged.

    Raises:
        ValueError: as `sentence`.
    """
    rng = random.Random(rng) if isinstance(rng, int) else rng
    true = sentence({name: values.get(name, "") for name in named}, rng.getrandbits(32))
    false, attribute = swap_caption(true, named, values, rng)
    return true, false, attribute


def _find(caption: str, attribute: str) -> tuple[int, int] | None:
    """Where the word of an attribute's value begins and ends; None where the attribute is not named."""
    match = _search(attribute).search(caption)
    return None if match is None else match.span(match.lastgroup or 0)


@functools.cache
def _search(attribute: str) -> re.Pattern[str]:
    """Finds an attribute's value word in a caption: the word stands in group "before" or "after" its noun."""
    if attribute == "size":
        words = "|".join(word for value in _SIZE_WORDS.values() for word in value)
        return re.compile(rf"\b(?P<before>{words})\b")
    if attribute == "background":
        return re.compile(rf"\bthe (?P<before>{'|'.join(ATTRIBUTES['background'])})\b")
    words = "|".join(ATTRIBUTES[attribute])
    if attribute == "bill_length":
        return re.compile(rf"\b(?P<before>{words})(?: (?:{'|'.join(ATTRIBUTES['bill'])}))? (?:bill|beak)\b")
    nouns = "|".join(dict.fromkeys(NOUNS[attribute]))
    link = r"(?: that| of this(?: \w+)? bird)? (?:is|are)"
    return re.compile(rf"\b(?P<before>{words}) (?:{nouns})\b|\b(?:{nouns}){link} (?P<after>{words})\b")
