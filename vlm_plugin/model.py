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

from .encoders import InceptionEncoder, LSTMTextEncoder, build_image_encoder, rebuildable
from .features import Features, as_features
from .finite import not_finite
from .scorer import MatchingScoreBlock
from .vocabulary import REMEDY, Vocabulary, vocabulary_of

ASSETS = Path(__file__).parent / "assets"
_FORMAT = "vlm_plugin.VLM"
_VERSION = 1


def unwrapped(network: nn.Module) -> nn.Module:
    """The network that torch.compile, DataParallel or DistributedDataParallel wrap; without any, the network itself."""
    while True:
        if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            network = network.module
        elif hasattr(network, "_orig_mod"):  # torch.compile's
            network = network._orig_mod
        else:
            return network


def fingerprint(network: nn.Module | Mapping[str, Tensor]) -> str:
    """Sixteen hexadecimal digits that name a network's weights, the same on every device and in every wrapper.

    Args:
        network: a module, or its state dict. Counters of batches seen by a BatchNorm do not count; the dtype does.
    """
    state = unwrapped(network).state_dict() if isinstance(network, nn.Module) else network
    digest = hashlib.sha256()
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


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
        if isinstance(max_words, bool) or not isinstance(max_words, int) or max_words < 1:
            raise ValueError(f"max_words: expected a positive integer, got {max_words!r}")
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
                "image_encoder: expected one of vlm_plugin.encoders, which a file can name, got "
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
        checked = _check_content(content, path, _FORMAT, _VERSION)
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
        image_state = _state_dict(image_encoder_path, ("emb_features.weight",), "DAMSM image encoder")
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


def read_checkpoint(path: str | os.PathLike, expected_format: str, newest_version: int) -> dict:
    """Read one of this package's files without executing code from it.

    Raises:
        FileNotFoundError, ValueError: the message names the file.
    """
    return _check_content(read_file(path, f"{expected_format} file"), path, expected_format, newest_version)


def read_file(path: str | os.PathLike, what: str) -> object:
    """Whatever `torch.save` wrote to a file, on the CPU, without executing code from it.

    Args:
        path: the file.
        what: what it should be, for messages.

    Raises:
        FileNotFoundError, ValueError: the message names the file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path}: not a readable {what} ({type(error).__name__})") from error


def write_file(content: object, path: str | os.PathLike) -> None:
    """`torch.save` to a file beside `path`, then rename, so that a kill at any moment leaves a whole file.

    Raises:
        OSError: the file cannot be written; the message names it.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".part")
    try:
        torch.save(content, temporary)
    except RuntimeError as error:  # torch's own for a missing folder, missing rights and a full disk alike
        reason = " ".join(str(error).split())[:300]
        raise OSError(f"{path}: expected a file that can be written, on a disk with room, got {reason}") from error
    os.replace(temporary, path)


def _check_content(content: object, path: str | os.PathLike, expected_format: str, newest_version: int) -> dict:
    found = content.get("format") if isinstance(content, dict) else None
    if found != expected_format:
        raise ValueError(f"{path}: expected a {expected_format} file, got {found or 'something else'}")
    version = content.get("version")
    if not isinstance(version, int):
        raise ValueError(f"{path}: expected a {expected_format} file with a version, got {version!r}")
    if version > newest_version:
        raise ValueError(f"{path}: written as version {version}, this release reads up to {newest_version}: upgrade")
    if name := not_finite(content.get("weights")):
        raise ValueError(
            f"{path}: expected finite weights, got NaN or infinity in {name}: the training that wrote it broke down"
        )
    return content


def find_file(path: str | os.PathLike) -> Path:
    """A file as it is named or, for the bare name of a packaged matcher that is no file here, the packaged one.

    Raises:
        FileNotFoundError: neither exists; the message lists what is packaged.
    """
    path = Path(path)
    if path.is_file():
        return path
    packaged = ASSETS / path
    if path.name == str(path) and packaged.is_file():
        return packaged
    known = ", ".join(sorted(p.name for p in ASSETS.glob("*.vlm.pt"))) or "none"
    raise FileNotFoundError(f"{path}: no such file (packaged matchers: {known})")


def damsm_text_state(path: str | os.PathLike) -> dict[str, Tensor]:
    """The state dict of a published DAMSM text encoder, on the CPU.

    Raises:
        FileNotFoundError, ValueError: the message names the file.
    """
    return _state_dict(path, ("encoder.weight", "rnn.weight_hh_l0"), "DAMSM text encoder")


def _state_dict(path: str | os.PathLike, keys: tuple[str, ...], what: str) -> dict[str, Tensor]:
    state = read_file(path, "state dict")
    if missing := [key for key in keys if not isinstance(state, dict) or key not in state]:
        raise ValueError(f"{path}: expected the state dict of a {what} (with {missing[0]!r}), got something else")
    return dict(state)


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
