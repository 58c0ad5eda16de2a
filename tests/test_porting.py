"""What docs/porting.md shows is true: its Python runs, its commands parse, its names exist, and the example trains."""

import math
import multiprocessing
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import vlm_plugin
from vlm_plugin import VLM, DualVLMLoss, Features

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "own_gan.py"
GUIDE = (ROOT / "docs" / "porting.md").read_text(encoding="utf-8")
HOSTS = ("DM-GAN", "SSA-GAN", "RAT-GAN")
CAPTIONS = ["a red bird", "a small bird with blue wings", "a bird with a white belly"]


def blocks(text, language="python"):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def section(title):
    """What stands below a host's heading, up to the next one of any level."""
    return re.split(r"\n##+ ", GUIDE.split(f"\n### {title}\n", 1)[1])[0]


GENERAL = GUIDE.split("## 15.")[0]


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 3 * 16 * 16), nn.Unflatten(1, (3, 16, 16)), nn.Tanh())

    def forward(self, noise, sentence):
        return self.layers(torch.cat([noise, sentence], dim=1))


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 16 * 16, 1)

    def forward(self, images, sentence):
        return self.layer(images.flatten(1))[:, 0] + sentence.mean(1)


def own_gan():
    """A trainer's names, as the guide's pieces use them."""
    torch.manual_seed(0)
    generator, discriminator = Generator(), Discriminator()
    text = VLM.load("birds.vlm.pt").encode_text(CAPTIONS)
    return {
        "device": torch.device("cpu"), "dtype": torch.bfloat16, "step": 40, "captions": CAPTIONS,
        "generator": generator, "discriminator": discriminator,
        "optimizer_g": torch.optim.Adam(generator.parameters()),
        "optimizer_d": torch.optim.Adam(discriminator.parameters()),
        "noise": torch.randn(3, 4), "sentence": torch.randn(3, 4), "real": torch.rand(3, 3, 16, 16) * 2 - 1,
        "class_ids": [4, 9, 4],
        "words_embs": text.local.detach().transpose(1, 2), "sent_emb": text.pooled.detach(),
        "image_encoder": VLM.load("birds.vlm.pt").image_encoder,
    }  # fmt: skip


@pytest.fixture
def one_rank(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_pieces_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope, ran = own_gan(), {}
    for number, code in enumerate(blocks(GENERAL)):
        before = [p.detach().clone() for p in scope["generator"].parameters()]
        scope["generator"].zero_grad()
        try:
            exec(code, scope)
        except Exception as error:
            raise AssertionError(f"piece {number}:\n{code}") from error
        if ".backward()" in code:
            ran["backward"] = ran.get("backward", 0) + 1
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in scope["generator"].parameters()), code
        if "GradScaler" in code:
            assert any((p != b).any() for p, b in zip(scope["generator"].parameters(), before, strict=True))
        if "encode_" in code or "text_features(" in code:
            ran["text"] = ran.get("text", 0) + 1
            assert isinstance(scope["text"], Features)
            assert len(scope["text"].pooled) == 3
        if "gradient_norms(" in code:
            assert list(scope["norms"]) == ["adversarial", "vlm", "vvm"]
            assert all(value > 0 for value in scope["norms"].values())
            assert (scope["vlm_loss"].lambda_vvm, scope["vlm_loss"].lambda_vlm) == (0.0, 0.0), "not put back"
        if "def ramp(" in code:
            assert [scope["ramp"](step) for step in (0, 99, 199, 1000)] == [0.005, 0.5, 1.0, 1.0]
            assert scope["vlm_loss"].lambda_vlm > 0
    printed = capsys.readouterr().out
    assert re.search(r"^\{'lambda_vlm': [\d.]+, 'lambda_vvm': [\d.]+\}$", printed, flags=re.MULTILINE)
    assert all(re.search(rf"^{name} .* \(floor ", printed, flags=re.MULTILINE) for name in vlm_plugin.TERMS)
    # Three ways to give captions, and the step that section 2 shows; two more steps: autocast and ranks.
    assert ran == {"backward": 3, "text": 4}
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert set(saved) == {"step", "generator", "discriminator", "optimizer_g", "optimizer_d"}
    assert scope["vlm_loss"].terms == ("vlm_local", "vlm_global", "vvm_local", "vvm_global")


def test_gradient_norms_are_those_of_each_part():
    code = next(code for code in blocks(GENERAL) if "def gradient_norms" in code)
    scope = own_gan()
    scope["vlm_loss"] = loss = DualVLMLoss(VLM.load("birds.vlm.pt"), lambda_vvm=0.3, lambda_vlm=0.7)
    scope["text"] = loss.encode_text(CAPTIONS)
    exec(code, scope)
    half = DualVLMLoss(VLM.load("birds.vlm.pt"), lambda_vvm=0.0, lambda_vlm=2.0)
    total = half(scope["fake"], scope["text"], scope["real"], class_ids=[4, 9, 4]).total
    (gradient,) = torch.autograd.grad(total, scope["fake"])
    assert gradient.norm().item() == pytest.approx(2 * scope["norms"]["vlm"], rel=1e-4)
    assert (loss.lambda_vvm, loss.lambda_vlm) == (0.3, 0.7)


def test_equal_pictures_cost_what_the_guide_says():
    assert "at least 2 log(B)" in GUIDE
    loss = DualVLMLoss(VLM.load("birds.vlm.pt"), lambda_vvm=1.0, lambda_vlm=1.0)
    real = torch.rand(3, 3, 32, 32) * 2 - 1
    equal = real[:1].expand(3, -1, -1, -1)
    terms = loss(equal, loss.encode_text(CAPTIONS), real).terms
    for name in vlm_plugin.TERMS:
        if not name.endswith("_general"):
            assert terms[name] >= 2 * math.log(3) - 1e-4, name
    alone = loss(real[:1], loss.encode_text(CAPTIONS[:1]), real[:1]).terms
    one_class = loss(real, loss.encode_text(CAPTIONS), real, class_ids=[7, 7, 7]).terms
    for name in ("vlm_local", "vlm_global", "vvm_local", "vvm_global"):
        assert float(alone[name]) == pytest.approx(0, abs=1e-5)
        assert float(one_class[name]) == pytest.approx(0, abs=1e-5)


@pytest.mark.filterwarnings("ignore:fake")
@pytest.mark.usefixtures("one_rank")
def test_what_the_guide_says_of_range_modules_and_ranks():
    assert "A batch in [0, 1] is an error" in GUIDE
    loss = DualVLMLoss(VLM.load("birds.vlm.pt"), lambda_vvm=1.0, lambda_vlm=1.0)
    text, real = loss.encode_text(CAPTIONS), torch.rand(3, 3, 32, 32)
    with pytest.raises(ValueError, match="image_range"):
        loss(real, text, real)
    assert "DistributedDataParallel refuses it" in GUIDE
    with pytest.raises(RuntimeError, match="parameter"):
        nn.parallel.DistributedDataParallel(loss)
    assert "into a tuple" in GUIDE
    holder = nn.Module()
    holder.inside = loss
    assert holder.state_dict()
    del holder.inside
    holder.kept = (loss,)
    assert not holder.state_dict()
    assert not list(holder.parameters())


def _ranked(rank, world, folder):
    """The guide's piece for several GPUs on one of `world` processes; rank 0 writes the generator's gradient."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting{world}", rank=rank, world_size=world)
    scope = own_gan()
    torch.manual_seed(1)
    share = slice(rank * 4 // world, (rank + 1) * 4 // world)
    scope |= {
        "noise": torch.randn(4, 4)[share], "sentence": torch.randn(4, 4)[share],
        "real": (torch.rand(4, 3, 16, 16) * 2 - 1)[share], "class_ids": [1, 2, 1, 3][share],
    }  # fmt: skip
    loss = scope["vlm_loss"] = DualVLMLoss(VLM.load("birds.vlm.pt"), lambda_vvm=1.0, lambda_vlm=1.0)
    scope["text"] = loss.encode_text([*CAPTIONS, "a large green bird"][share])
    (code,) = (code for code in blocks(GENERAL) if "DistributedDataParallel" in code)
    exec(code, scope)
    if rank == 0:
        torch.save([p.grad for p in scope["generator"].parameters()], f"{folder}/gradient{world}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_take_the_step_of_one(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_ranked, args=(rank, 2, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    _ranked(0, 1, str(tmp_path))
    for process in processes:
        process.join(600)
        alive = process.is_alive()
        process.kill()
        assert not alive, "a rank waits for ever"
        assert process.exitcode == 0
    one, two = (torch.load(tmp_path / f"gradient{world}.pt", weights_only=True) for world in (1, 2))
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * float(a.abs().max()))


def host_scope(tmp_path):
    """The names that sections 15's table gives for each host, as its code has them in scope."""
    torch.manual_seed(0)
    vlm = VLM.load("birds.vlm.pt")
    vlm.save(tmp_path / "bird.vlm.pt")
    tokens, lengths = vlm.vocabulary.encode_batch(CAPTIONS, vlm.max_words)
    text = vlm.encode_tokens(tokens, lengths).detach()
    leaf = torch.zeros(3, 3, 16, 16, requires_grad=True)
    fake, real = leaf.tanh(), torch.rand(3, 3, 16, 16) * 2 - 1
    common = {
        "words_embs": text.local.transpose(1, 2), "sent_emb": text.pooled, "cap_lens": lengths,
        "class_ids": torch.tensor([5, 9, 5]).numpy(), "device": torch.device("cpu"), "leaf": leaf,
    }  # fmt: skip
    single = {"fake": fake, "imgs": real, "epoch": 1, "step": 249, "dataloader": [None] * 400}
    return {
        "DM-GAN": {
            **common, "fake_imgs": [fake[..., :4, :4], fake], "imgs": [real[..., :4, :4], real], "gen_iterations": 250,
            "image_encoder": vlm.image_encoder, "errG_total": leaf.sum() * 0,
        },
        "SSA-GAN": {**common, **single, "errG_total": leaf.sum() * 0},
        "RAT-GAN": {**common, **single, "errG": leaf.sum() * 0},
    }  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
def test_lines_for_a_host_reach_its_generator(host, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = host_scope(tmp_path)[host]
    pieces = blocks(section(host))
    assert len(pieces) == 3, "import, construction, call"
    for code in pieces:
        exec(code, scope)
    assert scope["vlm_loss"].lambda_vlm == pytest.approx(0.2)  # half of the ramp
    total = scope["errG" if host == "RAT-GAN" else "errG_total"]
    total.backward()
    assert total > 0
    assert scope["leaf"].grad.abs().sum() > 0


def test_table_of_hosts_names_what_the_lines_read():
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in GUIDE.splitlines() if line.startswith("| ")]
    assert tuple(table[0][1:]) == HOSTS
    for column, host in enumerate(HOSTS, start=1):
        lines = "\n".join(blocks(section(host)))
        for row in table[2:]:
            if row[0] in ("generated pictures", "real pictures", "class ids", "sum for the generator"):
                assert re.search(rf"(?<!\w){re.escape(row[column].strip('`'))}", lines), (host, row[0])
        assert re.fullmatch(r"`[0-9a-f]{7}`", {row[0]: row[column] for row in table}["commit"])


def test_every_name_of_ours_exists():
    from vlm_plugin.augment import RandomView

    found = 0
    for match in re.finditer(r"from (vlm_plugin[\w.]*) import ([\w, ]+)", GUIDE):
        module = __import__(match[1], fromlist=["_"])
        for name in match[2].split(","):
            assert hasattr(module, name.strip()), match[0]
            found += 1
    for name in re.findall(r"vlm_plugin\.(\w+)", re.sub(r".*import.*", "", GUIDE)):
        assert hasattr(vlm_plugin, name), name
        found += 1
    own = {"VLM": VLM, "vlm_loss": DualVLMLoss(VLM.load("birds.vlm.pt"), lambda_vvm=0.0, lambda_vlm=0.0)}
    own["vlm"] = own["vlm_loss"]._door.vlm
    for holder, name in re.findall(
        r"\b(VLM|vlm_loss|vlm)\.(?!pt\b)(\w+)", GUIDE.replace("birds.vlm.pt", "").replace("bird.vlm.pt", "")
    ):
        assert hasattr(own[holder], name), f"{holder}.{name}"
        found += 1
    for call in re.findall(r"RandomView\(([^)]*)\)", GUIDE):
        RandomView(**{k.strip(): eval(v) for k, v in (part.split("=") for part in call.split(",") if part)})
        found += 1
    assert found > 20
    for term in re.findall(r"\b(?:vlm|vvm)_(?:local|global|general)\b", GUIDE):
        assert term in vlm_plugin.TERMS


def test_commands_parse():
    from vlm_plugin.cli.main import parser
    from vlm_plugin.gans import config as config

    seen = []
    for block in blocks(GUIDE, "bash"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            seen.append(words[0])
            if words[0] == "vlm-plugin":
                root = parser()
                root.parse_args(words[1:])
                # Argparse takes shortened options too; a guide should not.
                (commands,) = root._subparsers._group_actions
                known = commands.choices[words[1]]._option_string_actions
                assert all(word in known for word in words if word.startswith("--")), line
            elif words[1].startswith("baselines/"):
                config.parser(words[1].split("/")[1]).parse_args(words[2:])
            else:
                assert words[:2] == ["python", "examples/own_gan.py"]
    assert seen.count("vlm-plugin") == 2
    assert "python" in seen
    for command in re.findall(r"`vlm-plugin ([^`]+)`", GUIDE):
        parser().parse_args(shlex.split(command))


def test_files_it_links_exist():
    targets = [t for t in re.findall(r"\]\(([^)]+)\)", GUIDE) if "://" not in t]
    assert {"../examples/own_gan.py", "method.md"} <= set(targets)
    for target in targets:
        assert (ROOT / "docs" / target.partition("#")[0]).is_file(), target


def test_lines_of_the_guide_are_short():
    assert not [line for line in GUIDE.splitlines() if len(line) > 125]


def test_example_is_short_and_trains(tmp_path):
    source = EXAMPLE.read_text(encoding="utf-8")
    assert len(source.splitlines()) < 120
    # Every line with a name of the loss's is marked, so that the marks can be copied by.
    for line in source.split('"""', 2)[2].splitlines():
        code, _, comment = line.partition("#")
        if re.search(r"\b(vlm_loss|DualVLMLoss|RandomView|dual|floors|terms|ramp|LAMBDA_\w+)\b", code):
            assert comment.strip().startswith("VLM"), line

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLE), "--steps", "2", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^step 1 .* vlm_local \d.* \(floor ", done.stdout, flags=re.MULTILINE)
    saved = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 2
    names = [name for part in ("generator", "discriminator") for name in saved[part]]
    assert names
    assert not any("encoder" in name or "scorer" in name for name in names)
    assert (tmp_path / "out" / "samples.png").stat().st_size > 10_000
