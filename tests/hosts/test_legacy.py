"""Scripts as old as the originals run unedited; each line of the host's script needs something that has vanished."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlm_plugin.cli.main import main

ROOT = Path(__file__).parent.parent.parent

# Imports once and runs each script in a fork. A loader's worker that starts afresh ("spawn", the default elsewhere)
# would not know the host's modules.
DRIVER = """
import json, multiprocessing, os, sys
from vlm_plugin.hosts import run_legacy
from vlm_plugin.cli.main import main

multiprocessing.set_start_method("spawn")
run_legacy.PACKAGES["absent_module"] = "absent-package"
host, said, scripts = sys.argv[1:]
for name, words in json.loads(scripts).items():
    child = os.fork()
    if child == 0:
        for number, kind in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{said}/{name}.{kind}", os.O_CREAT | os.O_WRONLY), number)
        sys.exit(main(["run-legacy", host, *words]))
    with open(f"{said}/{name}.status", "w") as file:
        file.write(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
"""

STUBS = {
    "pandas.py": "def read_csv(path, sep=',', header='infer'):\n    return [path, sep, header]\n",
    "skimage/__init__.py": "",
    "skimage/transform.py": "def pyramid_expand(image, upscale, sigma, channel_axis=None):\n    return channel_axis\n",
}

HOST = {
    "beside.py": """
        def untouched():
            try:
                return "text".decode("utf8")
            except AttributeError:
                return "no decode"
    """,
    "code/lib/__init__.py": "",
    "code/old.py": """
        from __future__ import division, unicode_literals

        class Numbers(object):
            def __init__(self, numbers):
                self.numbers = numbers

            def __len__(self):
                return len(self.numbers)

            def __getitem__(self, index):
                return int(str(self.numbers[index]).decode("utf8"))

            def pairs(self, table):
                return sorted((key, value) for key, value in table.iteritems()), table.has_key("a"), table.has_key("z")

        class Turns(object):
            turn = 0

            def next(self):
                self.turn += 1
                return self.turn
    """,
    "code/src/main.py": """
        from __future__ import print_function
        import os, pickle, sys
        sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "..")))
        sys.path.append("..")
        from io import BytesIO, StringIO
        import numpy as np
        import pandas as pd
        import skimage.transform
        import torch
        import torch.utils.model_zoo as model_zoo
        import yaml
        from easydict import EasyDict
        from PIL import Image, ImageFont
        from torchvision import models, transforms
        from torchvision.utils import make_grid, save_image
        from beside import untouched
        from old import Numbers, Turns
        from vlm_plugin import DualVLMLoss

        print("argv", sys.argv)
        print("name", __name__, os.path.basename(os.getcwd()), sys.modules["__main__"].Numbers is Numbers)
        def typed(number: int):
            return number

        print("annotation", typed.__annotations__["number"] is int)
        print("xrange", list(xrange(1, 3)))
        print("decode", "caf\\u00e9".decode("utf8"), b"caf".decode("ascii"), untouched())
        print("table", Numbers([]).pairs(EasyDict(a=1, b=EasyDict(c=2))))
        print("next", iter([5]).next(), Turns().next())
        loader = iter(torch.utils.data.DataLoader(Numbers([7, 8]), batch_size=2, num_workers=1))
        print("worker", loader.next().tolist())
        print("pickle", pickle.load(BytesIO(b"\\x80\\x02U\\x02a\\xff.")) == u"a\\xff")
        print("bytes", pickle.load(BytesIO(b"\\x80\\x02U\\x02a\\xff."), encoding="bytes"))
        print("yaml", yaml.load(StringIO(u"a: 1")), yaml.load(StringIO(u"b: 2"), Loader=yaml.FullLoader))
        print("csv", pd.read_csv("f.txt", delim_whitespace=True, header=None), pd.read_csv("f.csv"))
        print("attention", skimage.transform.pyramid_expand(np.zeros((2, 2, 3)), sigma=20, upscale=16))
        print("scale", transforms.Scale(4)(Image.new("RGB", (8, 8))).size)
        print("font", ImageFont.truetype("Pillow/Tests/fonts/None.ttf", 50).getbbox("word")[3] > 25)
        pictures = torch.tensor([-2.0, 0.0]).view(2, 1, 1, 1)
        print("grid", make_grid(pictures, padding=0, normalize=True, range=(-1, 1))[0].tolist())
        save_image(pictures, BytesIO(), format="png", normalize=True, range=(-1, 1))
        with torch.device("meta"):
            inception = models.inception_v3(init_weights=False)
        weights = model_zoo.load_url("file:///none/inception_v3.pth", progress=False)
        print("weights", inception.load_state_dict(weights, assign=True))
        try:
            model_zoo.load_url("file:///none/resnet.pth")
        except IOError:
            print("weights of another network")
        print("mask", torch.zeros(2).masked_fill_(torch.ByteTensor([0, 1]), 1.0).tolist())
        print("bool mask", torch.zeros(2).masked_fill_(torch.tensor([False, True]), 2.0).tolist())
        loss = torch.autograd.Variable(torch.tensor(3.0), volatile=True)
        print("loss %.2f %s" % (loss.data[0], [torch.ones(2)[0].tolist(), torch.ones(2, 2)[0, 1:].tolist()]))
        print("scalar", loss[None].shape[0], torch.ones(2)[np.array([0, 1])].tolist())
        torch.cuda.set_device(0)
        print("cuda", torch.ones(1).cuda(0).device, next(torch.nn.Linear(1, 1).cuda().parameters()).device)
        print("cuda", torch.cuda.FloatTensor(torch.ones(2).size()).zero_().tolist())
        gathered = [torch.zeros(2) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(gathered, torch.ones(2), async_op=False)
        print("gathered", torch.cat(gathered).tolist())
        sys.exit(7)
    """,
    "code/broken.py": """
        from lib import wrong

        wrong.fail("text".decode("utf8"))
    """,
    "code/lib/wrong.py": """
        def fail(text):
            if text.decode("utf8"):
                raise ValueError("what the host says")
    """,
    "code/absent.py": "import absent_module\n",
}

EXPECTED = r"""
argv ['src/main.py', '--cfg', 'a b.yml', '--', '-x', '--help']
name __main__ code True
annotation True
xrange [1, 2]
decode café caf no decode
table ([('a', 1), ('b', {'c': 2})], True, False)
next 5 1
worker [7, 8]
pickle True
bytes b'a\xff'
yaml {'a': 1} {'b': 2}
csv ['f.txt', '\\s+', None] ['f.csv', ',', 'infer']
attention -1
scale (4, 4)
font True
grid [[0.0, 0.5]]
weights <All keys matched successfully>
weights of another network
mask [0.0, 1.0]
bool mask [0.0, 2.0]
loss 3.00 [1.0, [1.0]]
scalar 1 [1.0, 1.0]
cuda cpu cpu
cuda [0.0, 0.0]
gathered [1.0, 1.0]
"""

WORDS = {
    "main": ["--", "src/main.py", "--cfg", "a b.yml", "--", "-x", "--help"],
    "broken": ["--", "broken.py"],
    "absent": ["absent.py"],
}


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        lines = text.strip("\n").split("\n")
        indent = len(lines[0]) - len(lines[0].lstrip())
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(f"{line[indent:]}\n" for line in lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("host"), HOST)


@pytest.fixture(scope="module")
def ran(host: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """Exit status, stdout and stderr of every script."""
    stubs, said = write(tmp_path_factory.mktemp("stubs"), STUBS), tmp_path_factory.mktemp("said")
    settings = {
        "PYTHONPATH": os.pathsep.join([str(stubs), str(ROOT)]),
        "PYTHONIOENCODING": "utf-8",
        "PYTHONWARNINGS": "ignore",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "TORCH_HOME": str(stubs),
    }
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | settings
    command = [sys.executable, "-c", DRIVER, str(host), str(said), json.dumps(WORDS)]
    # Started where the host's modules lie, as a user may: Python has looked there before the host runs.
    subprocess.run(command, cwd=host / "code", env=environment, check=True, timeout=300)

    def read(name: str, kind: str) -> str:
        return (said / f"{name}.{kind}").read_text(encoding="utf-8")

    return {name: (int(read(name, "status")), read(name, "out"), read(name, "err")) for name in WORDS}


def test_old_script_runs_unedited(ran: dict[str, tuple[int, str, str]]) -> None:
    status, out, error = ran["main"]
    # torch's own announcement, which may be on either stream.
    lines = [line for line in out.splitlines() if not line.startswith("Downloading: ")]
    assert lines == EXPECTED.strip().splitlines(), error
    assert status == 7
    assert "no file:///none/inception_v3.pth" in error
    assert "random weights stand in" in error


def test_traceback_is_the_hosts(ran: dict[str, tuple[int, str, str]], host: Path) -> None:
    status, _, error = ran["broken"]
    assert status == 1
    assert f'File "{host / "code/broken.py"}", line 3, in <module>\n    wrong.fail("text".decode("utf8"))\n' in error
    assert (
        f'File "{host / "code/lib/wrong.py"}", line 3, in fail\n    raise ValueError("what the host says")\n' in error
    )
    assert "legacy.py" not in error
    assert error.startswith("Traceback (most recent call last):\n")
    assert error.endswith("ValueError: what the host says\n")


def test_missing_package_is_named_as_pip_calls_it(ran: dict[str, tuple[int, str, str]]) -> None:
    status, _, error = ran["absent"]
    assert status == 2
    assert error.startswith("vlm-plugin run-legacy: No module named 'absent_module'; the originals need: pip install ")
    assert "absent-package" in error.split()
    assert error.count("\n") == 1


@pytest.mark.usefixtures("ran")
def test_nothing_is_written_into_the_host(host: Path) -> None:
    assert {path.relative_to(host).as_posix() for path in host.rglob("*") if path.is_file()} == set(HOST)


def test_what_is_not_there_is_named(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, named in (
        ([str(host / "none"), "--", "main.py"], str(host / "none" / "code")),
        ([str(host), "--", "none.py"], str(host / "code" / "none.py")),
        ([str(host), "--"], "name a script"),
        ([str(host)], "name a script"),
    ):
        assert main(["run-legacy", *words]) == 2
        error = capsys.readouterr().err
        assert error.startswith("vlm-plugin run-legacy: ")
        assert named in error
        assert error.count("\n") == 1
