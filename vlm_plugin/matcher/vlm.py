"""The vision-language matcher: encoders, scorer, vocabulary and settings in one checkpoint file."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vlm_plugin.checks import check_positive
from vlm_plugin.features import Features, as_features
from vlm_plugin.files import check_content, digest, find_file, read_file, write_file
from vlm_plugin.matcher.content import FORMAT, VERSION, load_weights, pack, unpack
from vlm_plugin.matcher.damsm import read_damsm
from vlm_plugin.matcher.identity import (
    check_fingerprints,
    encoder_fingerprints,
    fingerprint,
    unwrapped,
    warn_if_untrained,
)
from vlm_plugin.matcher.scorer import MatchingScoreBlock
from vlm_plugin.matcher.text_encoder import LSTMTextEncoder
from vlm_plugin.matcher.vocabulary import Vocabulary, vocabulary_of


def _ordinary_tensors() -> contextlib.ExitStack:
    """Tensors through which gradients flow, on the CPU, whatever mode and default device a host is in."""
    modes = contextlib.ExitStack()
    modes.enter_context(torch.inference_mode(False))
    modes.enter_context(torch.device("cpu"))
    return modes


class VLM(nn.Module):
    """A matcher: it encodes images and captions into a common space and scores pairs.

    Args:
        image_encoder: images `(B, 3, H, W)` in [-1, 1] -> Features.
        text_encoder: `(tokens, lengths)` -> Features.
        vocabulary: turns captions into the text encoder's ids.
        scorer: the matching score block; None where none was trained, which leaves out the general terms.
        max_words: captions with more words are subsampled in order.
        notes: plain values about where the matcher comes from (data, steps, results), kept in its file.
    """

    def __init__(
        self,
        image_encoder: nn.Module,
        text_encoder: LSTMTextEncoder,
        vocabulary: Vocabulary,
        scorer: MatchingScoreBlock | None = None,
        *,
        max_words: int = 18,
        notes: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__()
        check_positive(max_words=max_words)
        settings = getattr(unwrapped(text_encoder), "settings", None)
        if settings is None:
            raise TypeError(
                f"text_encoder: expected an LSTMTextEncoder, got {type(text_encoder).__name__}: give modules of your "
                "own to DualVLMLoss(image_encoder=..., text_encoder=...) directly"
            )
        rows = settings["vocabulary_size"]
        if rows != len(vocabulary):
            raise ValueError(f"vocabulary: the text encoder knows {rows} words, the vocabulary has {len(vocabulary)}")
        width = settings["embed_dim"]
        for name, part in (("image_encoder", image_encoder), ("scorer", scorer)):
            own = width if part is None else getattr(unwrapped(part), "embed_dim", width)
            if own != width:
                raise ValueError(f"{name}: expected features of width {width} as the text encoder's, got {own}")
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.scorer = scorer
        self.vocabulary = vocabulary
        self.max_words = max_words
        self.notes = dict(notes or {})
        self._found_same: tuple[object, Vocabulary] | None = None

    @property
    def embed_dim(self) -> int:
        """D of the common space."""
        return unwrapped(self.text_encoder).settings["embed_dim"]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.text_encoder.parameters()).device

    @property
    def fingerprint(self) -> str:
        """Names the weights, for manifests and for telling a judge from the network that trained a generator."""
        return fingerprint({f"{n}.{k}": v for n, part in self._parts().items() for k, v in part.state_dict().items()})

    @property
    def caption_fingerprint(self) -> str:
        """Names what turns captions into ids, of which `fingerprint` says nothing: the vocabulary and `max_words`."""
        told = json.dumps([self.max_words, self.vocabulary.state_dict()], sort_keys=True)
        return digest([told])

    def _parts(self) -> dict[str, nn.Module]:
        """The networks, out of whatever wraps them."""
        parts = {name: getattr(self, name) for name in ("image_encoder", "text_encoder", "scorer")}
        return {name: unwrapped(part) for name, part in parts.items() if part is not None}

    def encode_image(self, images: Tensor) -> Features:
        """Regions and global vectors.

        Args:
            images: `(B, 3, H, W)` in [-1, 1], on the matcher's device.
        """
        return as_features(self.image_encoder(images), "image_encoder")

    def encode_text(self, captions: Sequence[str], generator: torch.Generator | None = None) -> Features:
        """Words and sentence vectors of strings, tokenised with this matcher's own vocabulary.

        Args:
            captions: B strings.
            generator: draws the subset of words kept of a caption over `max_words` (training); evenly spaced without.

        Raises:
            ValueError: a caption without a known word.
        """
        if isinstance(captions, str):
            raise TypeError("captions: expected a list of strings, got one string")
        tokens, lengths = self.vocabulary.encode_batch(captions, self.max_words, generator)
        return self.encode_tokens(tokens, lengths)

    def words(self, caption: str) -> list[str]:
        """The words of a caption that `encode_text` gives a vector each, in its order."""
        return self.vocabulary.decode(self.vocabulary.encode(caption, self.max_words)).split()

    def encode_tokens(
        self,
        tokens: Tensor,
        lengths: Tensor,
        vocabulary: Vocabulary | Mapping[int, str] | str | os.PathLike[str] | None = None,
    ) -> Features:
        """Words and sentence vectors of ids of this matcher's own vocabulary.

        Args:
            tokens: `(B, T)` integers below the vocabulary's size, padded with 0.
            lengths: `(B,)` integers, on any device.
            vocabulary: what made the ids, where the host knows it, see `check_vocabulary`.

        Raises:
            ValueError: `vocabulary` is another than this matcher's, an id outside the vocabulary (a sign of the same),
                an empty caption.
        """
        if vocabulary is not None:
            self.check_vocabulary(vocabulary)
        return self.text_encoder(tokens.to(self.device) if isinstance(tokens, Tensor) else tokens, lengths)

    def check_vocabulary(self, vocabulary: Vocabulary | Mapping[int, str] | str | os.PathLike[str]) -> None:
        """Refuse the ids of another vocabulary, whose words would silently be mistaken for each other.

        Only the words and their ids are compared. To ask again with the same object or path costs nothing.

        Args:
            vocabulary: what made the ids: a Vocabulary, a dict `ixtoword` of id to word, or the path of a captions
                pickle, see `Vocabulary.from_damsm`.

        Raises:
            OSError: the file cannot be opened.
            TypeError: `vocabulary` is something else.
            ValueError: it differs from this matcher's. The message has both sizes, the first differing words (this
                matcher's first) and what to do.
        """
        is_path = isinstance(vocabulary, (str, os.PathLike))
        if self._found_same is not None:
            known, own = self._found_same
            if own is self.vocabulary and (known is vocabulary or (is_path and known == vocabulary)):
                return
        if isinstance(vocabulary, Vocabulary):
            other = vocabulary
        else:
            other = Vocabulary.from_damsm(vocabulary) if is_path else vocabulary_of(vocabulary, "vocabulary")
        self.vocabulary.check_same(other, os.fspath(vocabulary) if is_path else "vocabulary", "the matcher")
        self._found_same = vocabulary, self.vocabulary

    def stamp(self) -> None:
        """Record the present encoders as those the scorer belongs to. Training calls it when it ends."""
        if self.scorer is not None:
            unwrapped(self.scorer).encoder_fingerprints = encoder_fingerprints(self.image_encoder, self.text_encoder)

    def save(self, path: str | os.PathLike, *, half: bool = False) -> None:
        """Write everything to one file, which `load` reads without executing code from it.

        A scorer that no training has stamped (see `stamp`) belongs from now on to the encoders it is saved with.

        Args:
            path: the file; its folder must exist. Written beside and renamed, so a killed save leaves the old file.
            half: store weights as float16, half the size, instead of float32. The file's fingerprints are those of
                the rounded weights.

        Raises:
            OSError: the file cannot be written; the message names it.
            ValueError: `load` could not read it: the image encoder is none of this package's, a weight is NaN or
                infinite (with `half`, above 65,504), or `notes` holds something else than plain values.
        """
        content = pack(self._parts(), self.vocabulary, self.max_words, self.notes, half=half, path=path)
        write_file(content, path)

    @classmethod
    def load(cls, path: str | os.PathLike, map_location: str | torch.device = "cpu") -> VLM:
        """Read a file that `save` wrote.

        Args:
            path: the file; the bare name of a packaged matcher ("birds.vlm.pt") will do.
            map_location: where to put the weights.

        Returns:
            The matcher in eval mode.

        Raises:
            FileNotFoundError: no such file, and no packaged matcher of that name.
            ValueError: the file is no VLM checkpoint, of a newer version, or has NaN or infinity among its weights.
        """
        path = find_file(path)
        with _ordinary_tensors():
            return cls.from_content(read_file(path, f"{FORMAT} file"), path).to(map_location)

    @classmethod
    def from_content(cls, content: object, path: str | os.PathLike) -> VLM:
        """The matcher that `load` reads, from a file's content that is in memory already.

        Args:
            content: what `read_file` returned.
            path: the file, for messages.

        Returns:
            The matcher on the CPU, in float32 and eval mode, whatever the host's default device and dtype are.

        Raises:
            ValueError: the content is no VLM checkpoint's, of a newer version, or has NaN or infinity among its
                weights.
        """
        checked = check_content(content, path, FORMAT, VERSION)
        try:
            with _ordinary_tensors():
                vlm = cls(**unpack(checked)).float()
                load_weights(vlm._parts(), checked)
        except Exception as error:
            raise ValueError(f"{path}: a damaged {FORMAT} file: {type(error).__name__}: {error}") from error
        return vlm.eval()

    @classmethod
    def from_damsm(
        cls,
        text_encoder_path: str | os.PathLike,
        image_encoder_path: str | os.PathLike,
        vocabulary: Vocabulary | str | os.PathLike,
    ) -> VLM:
        """A matcher without scorer from a published DAMSM pair (`text_encoder200.pth`, `image_encoder200.pth`).

        Args:
            text_encoder_path: state dict of DAMSM's RNN_ENCODER.
            image_encoder_path: state dict of DAMSM's CNN_ENCODER; it selects Mixed_7c by itself.
            vocabulary: a Vocabulary, or the `captions.pickle` (`captions_DAMSM.pickle`) the encoder was trained with.

        Returns:
            The matcher in eval mode; it refuses the general terms until a scorer is trained.

        Raises:
            ValueError: the files are no such state dicts, or text encoder and vocabulary (or image encoder) differ in
                size.
        """
        with _ordinary_tensors():
            pair = read_damsm(text_encoder_path, image_encoder_path, vocabulary)
        notes = {"source": f"DAMSM: {Path(text_encoder_path).name}, {Path(image_encoder_path).name}"}
        return cls(*pair, notes=notes).eval()


def check_vlm(vlm: VLM) -> None:
    """Refuse what is no matcher.

    Raises:
        TypeError: `vlm` is something else.
    """
    if not isinstance(vlm, VLM):
        raise TypeError(f"vlm: expected a VLM (VLM.load(path) reads one), got {type(vlm).__name__}")


def check_scorer(vlm: VLM) -> None:
    """Refuse a matcher whose scorer was trained on other encoders, and warn where nothing says that it was trained.

    The warning is on behalf of the caller's caller.

    Raises:
        ValueError: the message names scorer and encoder.
    """
    warn_if_untrained(vlm.scorer, "VLMS is its score", "VLM.stamp()", stacklevel=3)
    # Fingerprints are those of float32: of a matcher that was cast they say nothing.
    if all(value.dtype == torch.float32 for value in vlm.state_dict().values() if value.is_floating_point()):
        check_fingerprints(vlm.scorer, "VLM.stamp()", image_encoder=vlm.image_encoder, text_encoder=vlm.text_encoder)
