"""One data set of captioned pictures, whatever the layout they came from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from vlm_plugin.data.images import load_image, to_tensor
from vlm_plugin.data.records import BadSampleError, Record, bad
from vlm_plugin.files import caption_id
from vlm_plugin.matcher.vocabulary import MAX_WORDS, Vocabulary

# Pictures are resized to 76/64 of the wanted size and cropped, as StackGAN, AttnGAN and DF-GAN do.
_RESIZE = (76, 64)
# Letters of a caption in messages.
_LETTERS_SHOWN = 60


class Sample(NamedTuple):
    """One picture with one of its captions."""

    image: Tensor | tuple[Tensor, ...]
    """(3, S, S) float32 in [-1, 1]; one for each size where the data set has several."""
    caption: str
    caption_index: int
    """Position of the caption among the picture's captions."""
    class_id: int | None
    """None where there are no classes."""
    key: str
    index: int
    """Position of the picture in the data set."""
    skipped: tuple[str, ...] = ()
    """Files and keys of samples that this one stands in for, see `vlm_plugin.training.stream.Stream`."""

    def in_place_of(self, skipped: Sequence[str]) -> Sample:
        """The same sample, standing in for others."""
        return self._replace(skipped=(*self.skipped, *skipped))


class Batch(NamedTuple):
    """B samples."""

    images: Tensor | tuple[Tensor, ...]
    """(B, 3, S, S) float32 in [-1, 1]; one for each size where the data set has several (a DataLoader that pins memory
    makes a list of them)."""
    captions: list[str]
    caption_indices: Tensor
    """(B,) int64."""
    class_ids: Tensor
    """(B,) int64: rows of equal id are no negatives of each other. Without classes an id of a caption's text: rows of
    equal captions share one, and so do rows of one picture."""
    keys: list[str]
    indices: Tensor
    """(B,) int64."""
    tokens: Tensor | None = None
    """(B, T) int64 word ids, 0 past a caption's end; None unless `Collate` made the batch."""
    lengths: Tensor | None = None
    """(B,) int64 words of each caption; None unless `Collate` made the batch."""
    skipped: Sequence[str] = ()
    """Files and keys of samples that were left out, see `Sample`."""


class CaptionedImages(Dataset[Sample]):
    """Pictures with captions, cropped to one size or several.

    A picture is cropped to a square around its bounding box (if it has one; half a side is 0.75 times the box's longer
    side; what lies outside the picture is cut off), and resized until its shorter side is 76/64 of `image_size`. From
    that, training takes a crop at random, mirrors it at random and draws one of the captions; evaluation takes the
    centre, unmirrored, and caption number `index % number of captions`. With several sizes, the crop of the largest is
    resized to the others, as AttnGAN does. All randomness is torch's, which a DataLoader seeds apart for each worker.

    Args:
        records: the pictures, at least one. They are not copied: `Records` stay packed.
        image_size: side S of the pictures in pixels, or several.
        train: crop, mirror and draw captions at random.
        flip: mirror at random when training. Switch it off if captions tell left from right.
        vocabulary: where given, captions without a word of it are passed over.

    Raises:
        ValueError: no records, no image size, or one below 1.
    """

    def __init__(
        self,
        records: Sequence[Record],
        image_size: int | Sequence[int],
        *,
        train: bool,
        flip: bool = True,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        self._sizes = tuple(image_size) if isinstance(image_size, Sequence) else (image_size,)
        if not self._sizes or min(self._sizes) < 1:
            raise ValueError(f"image_size: expected at least 1 pixel, got {image_size}")
        if not len(records):
            raise ValueError("records: expected at least one picture, got none")
        self.records = records
        self.image_size = image_size
        self.train = train
        self.flip = flip
        self.vocabulary = vocabulary

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        """One sample.

        Raises:
            IndexError: the index is not in 0 .. len - 1.
            BadSampleError: a picture that `load_image` refuses, or one without a caption (that has a word of the
                vocabulary, where there is one). A missing picture's is a FileNotFoundError as well.
        """
        if not 0 <= index < len(self.records):
            raise IndexError(f"index: expected 0 to {len(self.records) - 1}, got {index}")
        record = self.records[index]
        numbers = self._usable(record)
        image = self._view(load_image(record.image, record.box))
        number = numbers[int(torch.randint(len(numbers), (), device="cpu")) if self.train else index % len(numbers)]
        return Sample(image, record.captions[number], number, record.class_id, record.key, index)

    def _usable(self, record: Record) -> list[int]:
        """Numbers of the captions that can be used."""
        if not record.captions:
            raise bad(record.key, "expected at least one caption, got none")
        numbers = [
            i for i, caption in enumerate(record.captions) if self.vocabulary is None or _says(caption, self.vocabulary)
        ]
        if not numbers:
            raise _wordless(record.key, record.captions[0], self.vocabulary)
        return numbers

    def _view(self, image: Image.Image) -> Tensor | tuple[Tensor, ...]:
        """The crop, mirrored or not, at each size."""
        size = max(self._sizes)
        shorter = size * _RESIZE[0] // _RESIZE[1]
        scale = shorter / min(image.size)
        width, height = (max(round(side * scale), shorter) for side in image.size)
        mirror = False
        if self.train:
            left, top = (
                int(torch.randint(width - size + 1, (), device="cpu")),
                int(torch.randint(height - size + 1, (), device="cpu")),
            )
            mirror = self.flip and bool(torch.rand((), device="cpu") < 0.5)
        else:
            left, top = (width - size) // 2, (height - size) // 2
        # Only what the crop shows is resized: a picture of 20,000 x 2 pixels would become one of gigabytes.
        x, y = image.width / width, image.height / height
        region = (left * x, top * y, min((left + size) * x, image.width), min((top + size) * y, image.height))
        # PIL's bilinear filter is antialiased, and sees the pixels around the region.
        crop = image.resize((size, size), Image.Resampling.BILINEAR, box=region)
        if mirror:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        views = tuple(to_tensor(crop.resize((s, s), Image.Resampling.BILINEAR)) for s in self._sizes)
        return views if isinstance(self.image_size, Sequence) else views[0]


def _says(caption: str, vocabulary: Vocabulary) -> bool:
    """Whether the caption has a word of the vocabulary."""
    return any(word in vocabulary for word in vocabulary.tokenize(caption))


def _wordless(key: str, caption: str, vocabulary: Vocabulary) -> BadSampleError:
    shown = caption if len(caption) <= _LETTERS_SHOWN else caption[: _LETTERS_SHOWN - 3] + "..."
    return bad(key, f"expected a caption with a word of the vocabulary ({len(vocabulary)} words), got {shown!r}")


def collate(samples: Sequence[Sample]) -> Batch:
    """Puts samples into a batch: the `collate_fn` of a DataLoader over `CaptionedImages`. See also `Collate`."""
    images = [sample.image for sample in samples]
    several = isinstance(images[0], tuple)
    return Batch(
        images=tuple(map(torch.stack, zip(*images, strict=True))) if several else torch.stack(images),
        captions=[sample.caption for sample in samples],
        caption_indices=torch.tensor([sample.caption_index for sample in samples], dtype=torch.long, device="cpu"),
        class_ids=torch.tensor(_class_ids(samples), dtype=torch.long, device="cpu"),
        keys=[sample.key for sample in samples],
        indices=torch.tensor([sample.index for sample in samples], dtype=torch.long, device="cpu"),
        skipped=[name for sample in samples for name in sample.skipped],
    )


def _class_ids(samples: Sequence[Sample]) -> list[int]:
    """Class ids; without classes one id for rows of equal captions or of one picture, whose captions are all true."""
    joined: dict[int, int] = {}

    def representative(number: int) -> int:
        while joined.get(number, number) != number:
            number = joined[number]
        return number

    numbers = [caption_id(sample.caption) if sample.class_id is None else sample.class_id for sample in samples]
    first_of_picture: dict[int, int] = {}
    for sample, number in zip(samples, numbers, strict=True):
        first = first_of_picture.setdefault(sample.index, number)
        joined[representative(number)] = representative(first)
    return [representative(number) for number in numbers]


class Collate:
    """`collate` that turns the captions into word ids as well, in the loader's processes.

    `matcher.encode_tokens(batch.tokens, batch.lengths)` then is `matcher.encode_text(batch.captions)`.

    Args:
        vocabulary: the matcher's.
        max_words: the matcher's; of longer captions evenly spaced words are kept.
    """

    def __init__(self, vocabulary: Vocabulary, max_words: int = MAX_WORDS) -> None:
        self.vocabulary, self.max_words = vocabulary, max_words

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """A batch with tokens and lengths.

        Raises:
            BadSampleError: a caption has no word of the vocabulary. The message has the picture's key and the caption.
        """
        batch = collate(samples)
        for key, caption in zip(batch.keys, batch.captions, strict=True):
            if not _says(caption, self.vocabulary):
                raise _wordless(key, caption, self.vocabulary)
        tokens, lengths = self.vocabulary.encode_batch(batch.captions, self.max_words)
        return batch._replace(tokens=tokens, lengths=lengths)
