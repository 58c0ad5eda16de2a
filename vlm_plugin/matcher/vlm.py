"""The vision-language matcher: encoders, scorer, vocabulary and settings in one checkpoint file."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vlm_plugin.checks import check_positive
from vlm_plugin.features import Features, as_features
from vlm_plugin.files import check_content, find_file, not_finite, read_file, write_file
from vlm_plugin.matcher.damsm import damsm_state_dict, damsm_text_state
from vlm_plugin.matcher.identity import check_fingerprints, fingerprint, unwrapped, warn_if_untrained
from vlm_plugin.matcher.image_encoders import InceptionEncoder, build_image_encoder, rebuildable
from vlm_plugin.matcher.scorer import MatchingScoreBlock
from vlm_plugin.matcher.text_encoder import LSTMTextEncoder
from vlm_plugin.matcher.vocabulary import REMEDY, Vocabulary, vocabulary_of

_FORMAT = "vlm_plugin.VLM"
_VERSION = 1


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
        return hashlib.sha256(told.encode()).hexdigest()[:16]

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
            unwrapped(self.scorer).encoder_fingerprints = self._encoder_fingerprints()

    def _encoder_fingerprints(self) -> dict[str, str]:
        return {name: fingerprint(getattr(self, name)) for name in ("image_encoder", "text_encoder")}

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
        parts = self._parts()
        if not rebuildable(parts["image_encoder"]):
            raise ValueError(
                "image_encoder: expected one of vlm_plugin.matcher.image_encoders, which a file can name, got "
                f"{type(parts['image_encoder']).__name__}: save its state_dict() yourself"
            )
        weights = {n: {k: _stored(v, half) for k, v in m.state_dict().items()} for n, m in parts.items()}
        if name := not_finite(weights):
            rounded = half and not not_finite({n: m.state_dict() for n, m in parts.items()})
            reason = "too large for half precision: leave half out" if rounded else "no number to keep"
            raise ValueError(f"{path}: expected finite weights, got NaN or infinity in {name}: {reason}")
        if key := _not_plain(self.notes, "notes"):
            raise ValueError(
                f"{key[0]}: expected plain values (strings, numbers, lists, dicts), got {key[1]}: float(...) or "
                "str(...) makes one"
            )
        scorer = parts.get("scorer")
        stamped = scorer.encoder_fingerprints if scorer else None
        # What is loaded is float32, so of encoders of another type the fingerprints are others there.
        if scorer and stamped in (None, self._encoder_fingerprints()):
            stamped = {n: fingerprint(_restored(weights[n])) for n in ("image_encoder", "text_encoder")}
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "settings": {
                "image_encoder": {"name": parts["image_encoder"].name, **parts["image_encoder"].settings},
                "text_encoder": dict(parts["text_encoder"].settings),
                **({"scorer": dict(scorer.settings)} if scorer else {}),
            },
            "max_words": self.max_words,
            "vocabulary": self.vocabulary.state_dict(),
            "notes": self.notes,
            "weights": weights,
            "scorer_trained_on": stamped,
        }
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
        return cls.from_content(read_file(path, f"{_FORMAT} file"), path).to(map_location)

    @classmethod
    def from_content(cls, content: object, path: str | os.PathLike) -> VLM:
        """The matcher that `load` reads, from a file's content that is in memory already.

        Args:
            content: what `read_file` returned.
            path: the file, for messages.

        Returns:
            The matcher on the CPU, in eval mode.

        Raises:
            ValueError: the content is no VLM checkpoint's, of a newer version, or has NaN or infinity among its
                weights.
        """
        checked = check_content(content, path, _FORMAT, _VERSION)
        try:
            return cls._build(checked).eval()
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise ValueError(f"{path}: a damaged {_FORMAT} file: {type(error).__name__}: {error}") from error

    @classmethod
    def _build(cls, content: Mapping) -> VLM:
        settings, weights = content["settings"], content["weights"]
        scorer = MatchingScoreBlock(**settings["scorer"]) if "scorer" in settings else None
        vlm = cls(
            build_image_encoder(**settings["image_encoder"]),
            LSTMTextEncoder(**settings["text_encoder"]),
            Vocabulary.from_state_dict(content["vocabulary"]),
            scorer,
            max_words=content["max_words"],
            notes=content["notes"],
        )
        for name in settings:
            getattr(vlm, name).load_state_dict(_restored(weights[name]))
        if scorer is not None:
            scorer.encoder_fingerprints = content["scorer_trained_on"]
        return vlm

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
        text_state = damsm_text_state(text_encoder_path)
        image_state = damsm_state_dict(image_encoder_path, ("emb_features.weight",), "DAMSM image encoder")
        source = ""
        if not isinstance(vocabulary, Vocabulary):
            source = f" ({os.fspath(vocabulary)})"
            vocabulary = Vocabulary.from_damsm(vocabulary)
        rows, word_dim = text_state["encoder.weight"].shape
        if rows != len(vocabulary):
            raise ValueError(
                f"vocabulary: {text_encoder_path} was trained with {rows} words, the vocabulary has {len(vocabulary)}"
                f"{source}: {REMEDY}"
            )
        embed_dim = 2 * text_state["rnn.weight_hh_l0"].shape[1]
        global_layer = "Mixed_7c" if any(k.startswith("Mixed_7c.") for k in image_state) else "Mixed_7b"
        image_encoder = InceptionEncoder(image_state["emb_features.weight"].shape[0], global_layer)
        text_encoder = LSTMTextEncoder(rows, embed_dim, word_dim)
        for network, state, path in (
            (image_encoder, image_state, image_encoder_path),
            (text_encoder, text_state, text_encoder_path),
        ):
            try:
                network.load_state_dict(state)
            except RuntimeError as error:
                reason = " ".join(str(error).split())[:300]
                raise ValueError(f"{path}: not a published DAMSM encoder: {reason}") from None
        notes = {"source": f"DAMSM: {Path(text_encoder_path).name}, {Path(image_encoder_path).name}"}
        return cls(image_encoder, text_encoder, vocabulary, notes=notes).eval()


def _stored(value: Tensor, half: bool) -> Tensor:
    value = value.detach().cpu()
    return value.to(torch.float16 if half else torch.float32) if value.is_floating_point() else value.clone()


def _not_plain(value: object, name: str) -> tuple[str, str] | None:
    """Name and type of the first part of `value` that a file which executes no code cannot hold."""
    if isinstance(value, Mapping):
        parts = [(key, f"{name}[{key!r}]") for key in value] + [(v, f"{name}[{k!r}]") for k, v in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(part, f"{name}[{number}]") for number, part in enumerate(value)]
    else:
        # Not isinstance: numpy's float64 is a float.
        is_plain = value is None or type(value) in (str, int, float, bool, Tensor)
        return None if is_plain else (name, type(value).__name__)
    return next(filter(None, itertools.starmap(_not_plain, parts)), None)


def _restored(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.float() if v.dtype == torch.float16 else v for k, v in state.items()}


def check_scorer(vlm: VLM) -> None:
    """Refuse a matcher whose scorer was trained on other encoders, and warn where nothing says that it was trained.

    Raises:
        ValueError: the message names scorer and encoder.
    """
    warn_if_untrained(vlm.scorer, "VLMS is its score", "VLM.stamp()")
    # Fingerprints are those of float32: of a matcher that was cast they say nothing.
    if all(value.dtype == torch.float32 for value in vlm.state_dict().values() if value.is_floating_point()):
        encoders = {"image_encoder": vlm.image_encoder, "text_encoder": vlm.text_encoder}
        check_fingerprints(vlm.scorer, "VLM.stamp()", **encoders)
