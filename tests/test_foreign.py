"""Files that are something else than a user took them for: the message says what, wherever one is read."""

from __future__ import annotations

import gzip
import io
import pickle
import re
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from vlm_plugin import VLM
from vlm_plugin.evaluation.distances import Inception
from vlm_plugin.evaluation.judge import Judge
from vlm_plugin.files import read_checkpoint, read_file, read_state_dict
from vlm_plugin.foreign import foreign, without_wrappers
from vlm_plugin.gans.find import find_networks
from vlm_plugin.matcher.choose import load_matcher
from vlm_plugin.matcher.image_encoders import InceptionEncoder
from vlm_plugin.matcher.vocabulary import Vocabulary
from vlm_plugin.unpickle import load_pickle

PAGE = b"<!DOCTYPE html><html><head><title>Google Drive -\n Virus scan warning</title></head></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456789\n"
BUCKET = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code><Message>no</Message></Error>'


def weights() -> bytes:
    file = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, file)
    return file.getvalue()


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, weights())
    return file.getvalue()


def tarred(name: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(weights())
        archive.addfile(member, io.BytesIO(weights()))
    return file.getvalue()


WEB = "a web page ('Google Drive - Virus scan warning')"
KNOWN = {
    "page": (PAGE, WEB),
    "page with a mark": (b"\xef\xbb\xbf" + PAGE, WEB),
    "page after blanks": (b"\r\n \n" + PAGE, WEB),
    "page in UTF-16": ("\ufeff".encode("utf-16-le") + PAGE.decode().encode("utf-16-le"), WEB),
    "page as servers pack it": (gzip.compress(PAGE), WEB),
    "page that is XML": (b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "x">\n<html></html>', "a web page"),
    "page after a comment": (b"<!-- saved\nfrom --><HTML lang=en>" + b"x" * 9000, "a web page"),
    "page without a head": (b"<script>window.location='/login'</script>", "a web page"),
    "pointer": (POINTER, "a Git LFS pointer: git lfs pull fetches the file"),
    "pointer of Windows": (POINTER.replace(b"\n", b"\r\n"), "a Git LFS pointer: git lfs pull fetches the file"),
    "old pointer": (b"version https://hawser.github.com/spec/v1\n", "a Git LFS pointer: git lfs pull fetches the file"),
    "annex": (b"/annex/objects/SHA256E-s3--ab.pth\n", "a git-annex pointer: git annex get fetches the file"),
    "bucket": (BUCKET, "an XML message ('AccessDenied')"),
    "bucket without declaration": (BUCKET.partition(b"\n")[2], "an XML message ('AccessDenied')"),
    "json": (b'{"error": "Repository not found"}', """a JSON message ('{"error": "Repository not found"}')"""),
    "long json": (b'[{"a": "' + b"x" * 9000 + b'"}]', 'a JSON message (\'[{"a": "' + "x" * 49 + "...')"),
    "text": (b"404: Not Found", "a text that begins '404: Not Found'"),
    "headers": (b"HTTP/1.1 403 Forbidden\r\nServer: x\r\n\r\n", "a text that begins 'HTTP/1.1 403 Forbidden'"),
    "empty": (b"", "an empty file"),
    "zeros": (b"\0" * 5000, "a file that begins with zeros alone: a download or a copy that broke off"),
    "half": (weights()[:-200], "a file that is cut short or damaged: a download or a copy that broke off"),
    "gzip": (gzip.compress(weights()), "a gzip archive: unpack it"),
    "half a gzip": (gzip.compress(b"x" * 99)[:12], "a gzip archive that is cut short or damaged: fetch it again"),
    "tar": (tarred("bird/text_encoder.pth"), "a tar archive that holds 'bird/text_encoder.pth': unpack it"),
    "half a tar": (tarred("a.pth")[:300], "a tar archive that is cut short or damaged: fetch it again"),
    "tar.gz": (gzip.compress(tarred("a.pth")), "a gzip archive with a tar archive in it: unpack it"),
    "zip": (zipped("README", "bird/a.pth"), "a zip archive that holds 'bird/a.pth': unpack it"),
    "empty zip": (b"PK\x05\x06" + b"\0" * 18, None),
    "bzip2": (b"BZh91AY&SY", "a bzip2 archive: unpack it"),
    "xz": (b"\xfd7zXZ\0\0", "an xz archive: unpack it"),
    "safetensors": (
        b"\x40\0\0\0\0\0\0\0" + b'{"weight":{"dtype":"F32"}}',
        "a safetensors file: load it with safetensors.torch.load_file and torch.save the result",
    ),
    "hdf5": (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    "torchscript": (
        zipped("net/data.pkl", "net/code/a.py", "net/constants.pkl"),
        "a TorchScript archive (of torch.jit.save), expected weights of torch.save",
    ),
    "weights": (weights(), None),
    "old weights": (pickle.dumps([1, "two words"], protocol=2), None),
    "a pickle of text": (pickle.dumps(["two words"], protocol=0), None),
    "noise": (bytes(range(128, 256)) * 9, None),
}


@pytest.mark.parametrize("name", KNOWN)
def test_what_a_file_is(name: str, tmp_path: Path) -> None:
    content, told = KNOWN[name]
    (tmp_path / "x.pth").write_bytes(content)
    assert foreign(tmp_path / "x.pth") == told


def test_what_cannot_be_opened_is_nothing_known(tmp_path: Path) -> None:
    assert foreign(tmp_path / "missing") is None
    assert foreign(tmp_path) is None


READERS = {
    "read_file": lambda path: read_file(path, "file"),
    "read_checkpoint": lambda path: read_checkpoint(path, "vlm_plugin.VLM", 1),
    "read_state_dict": read_state_dict,
    "load_pickle": load_pickle,
    "load_matcher": lambda path: load_matcher(str(path)),
    "VLM.load": VLM.load,
    "from_damsm": lambda path: VLM.from_damsm(path, path, Vocabulary(["<end>", "<unk>", "a"])),
    "Vocabulary.from_damsm": Vocabulary.from_damsm,
    "InceptionEncoder": lambda path: InceptionEncoder(weights=path),
    "Inception": Inception,
    "Judge.load": Judge.load,
    "find_networks": find_networks,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["page", "pointer", "empty", "zip"])
def test_every_reader_says_what_a_file_is(reader: str, name: str, tmp_path: Path) -> None:
    content, told = KNOWN[name]
    path = tmp_path / "text_encoder.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(told)) as caught:
        READERS[reader](path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message


def test_names_out_of_wrappers() -> None:
    network = nn.Sequential(nn.Linear(1, 1))
    own = list(network.state_dict())
    for wrapped in (
        nn.DataParallel(network), torch.compile(network), torch.compile(nn.DataParallel(network)),
        nn.DataParallel(torch.compile(network)), nn.Sequential(torch.compile(network[0])),
    ):  # fmt: skip
        assert list(without_wrappers(wrapped.state_dict())) == own
        assert list(wrapped.state_dict()) != own


def test_names_that_would_become_one_stay() -> None:
    state = {"module.a": 1, "a": 2}
    assert without_wrappers(state) == state
    assert without_wrappers({"modules.a": 1, "a.module_b": 2, 3: 4}) == {"modules.a": 1, "a.module_b": 2, 3: 4}
