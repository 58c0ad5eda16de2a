"""What a guest may do with the loss: each row of the table in docs/guests.md is a test of the same name here."""

from __future__ import annotations

import copy
import io
import math
import pickle
import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlm_plugin import (
    TERMS,
    VLM,
    ConvEncoder,
    DualVLMLoss,
    Features,
    LossOutput,
    LSTMTextEncoder,
    MatchingScoreBlock,
    Vocabulary,
    distributed,
)
from vlm_plugin.augment import RandomView
from vlm_plugin.matcher.identity import fingerprint

PAGE = Path(__file__).parents[1] / "docs" / "guests.md"
CAPTIONS = ["a small red bird", "a bird"]
WORDS = Vocabulary.build(CAPTIONS)
IDS = [1, 2]
GUESTS: dict[str, Callable[[], None]] = {}


def guest(name: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Enter a test under a row's name."""

    def enter(test: Callable[[], None]) -> Callable[[], None]:
        GUESTS[name] = test
        return test

    return enter


def matcher() -> VLM:
    torch.manual_seed(0)
    text_encoder = LSTMTextEncoder(len(WORDS), 8, word_dim=4)
    return VLM(ConvEncoder(8, width=2), text_encoder, WORDS, MatchingScoreBlock(8, layers=1, heads=2)).eval()


def make(**arguments: object) -> DualVLMLoss:
    return DualVLMLoss(matcher(), **{"lambda_vvm": 0.3, "lambda_vlm": 1.7, **arguments})


def pictures(seed: int, *size: int, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, *(size or (16, 16)), generator=torch.Generator().manual_seed(seed)) * 2 - 1


FAKE, REAL, DIRECTION = pictures(1), pictures(2), pictures(3)
TEXT = make().encode_text(CAPTIONS)


def total(fake: Tensor, loss: DualVLMLoss | None = None) -> Tensor:
    return (make() if loss is None else loss)(fake, TEXT, REAL, class_ids=IDS).total


def gradient(fake: Tensor, loss: DualVLMLoss | None = None) -> Tensor:
    fake = fake.detach().clone().requires_grad_()
    return torch.autograd.grad(total(fake, loss), fake)[0]


VALUE, GRADIENT = total(FAKE), gradient(FAKE)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def penalty(fake: Tensor) -> Tensor:
    """Second order: the gradient of the squared length of the loss's gradient."""
    fake = fake.detach().clone().requires_grad_()
    (first,) = torch.autograd.grad(total(fake), fake, create_graph=True)
    return torch.autograd.grad(first.square().sum(), fake)[0]


# ---------------------------------------------------------------------------------------------- precision, devices


@guest("autocast in bfloat16 and float16")
def test_autocast() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        fake = FAKE.clone().requires_grad_()
        with torch.autocast("cpu", dtype=dtype):
            value = total(fake)
        value.backward()
        assert value.dtype == torch.float32
        close(value, VALUE, 0.05)
        assert fake.grad.isfinite().all()


@guest("float64")
def test_float64() -> None:
    loss, fake = make().double(), FAKE.double().requires_grad_()
    value = loss(fake, TEXT.to(torch.float64), REAL.double(), class_ids=IDS).total
    assert value.dtype == torch.float64
    close(value.float(), VALUE)
    with pytest.raises(TypeError, match=r"fake: expected torch.float64, the matcher's dtype, got torch.float32"):
        total(FAKE, loss)


@guest("torch.set_default_dtype")
def test_default_dtype(tmp_path: Path) -> None:
    matcher().save(tmp_path / "m.vlm.pt")
    expected = VLM.load(tmp_path / "m.vlm.pt").fingerprint
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        torch.set_default_dtype(dtype)
        try:
            vlm = VLM.load(tmp_path / "m.vlm.pt")
            loss = DualVLMLoss(vlm, lambda_vvm=0.3, lambda_vlm=1.7, augment=RandomView(noise=0))
            torch.manual_seed(0)
            value, text = total(FAKE, loss), loss.encode_text(CAPTIONS)
        finally:
            torch.set_default_dtype(torch.float32)
        assert vlm.fingerprint == expected
        assert value.dtype == text.local.dtype == torch.float32
        plain = make(augment=RandomView(noise=0))
        torch.manual_seed(0)
        assert torch.equal(value, total(FAKE, plain))
        assert torch.equal(text.local, TEXT.local)


@guest("torch.set_default_device")
def test_default_device(tmp_path: Path) -> None:
    matcher().save(tmp_path / "m.vlm.pt")
    with torch.device("meta"):
        loss = DualVLMLoss(
            VLM.load(tmp_path / "m.vlm.pt"), lambda_vvm=0.3, lambda_vlm=1.7, augment=RandomView(shift=0, flip=False)
        )
        loss.augment.noise = 0.0
        assert torch.equal(loss.encode_text(CAPTIONS).local, TEXT.local)
        assert torch.equal(total(FAKE, loss), VALUE)


@guest("the meta device")
def test_meta() -> None:
    with torch.device("meta"):
        made = make()
    for loss in (make().to("meta"), made):
        fake, real = (x.to("meta").requires_grad_() for x in (FAKE, REAL))
        value, terms = loss(fake, TEXT.to("meta"), real, class_ids=IDS)
        value.backward()
        assert value.is_meta
        assert value.shape == ()
        assert list(terms) == list(TERMS)
        assert fake.grad.shape == FAKE.shape
        with pytest.raises(ValueError, match=r"tokens: expected values to read, got none \(the meta device"):
            loss.encode_text(CAPTIONS)
        with pytest.raises(ValueError, match=r"fake: expected images on meta, where the matcher is, got cpu"):
            total(FAKE, loss)
    with pytest.raises(ValueError, match=r"fake: expected images on cpu, where the matcher is, got meta"):
        total(FAKE.to("meta"))
    with pytest.raises(ValueError, match=r"expected a tensor with values to fingerprint, got one on the meta device"):
        fingerprint(made.image_encoder)
    stamped = matcher()
    stamped.stamp()
    DualVLMLoss(stamped.to("meta"), lambda_vvm=1.0, lambda_vlm=1.0)


@guest("pictures from 1x1 to 1024x1024 pixels")
def test_sizes() -> None:
    for size in ((1, 1), (1, 7), (3, 500), (1024, 1024)):
        found = gradient(pictures(4, *size))
        assert found.isfinite().all()
        assert found.any()


@guest("channels_last")
def test_channels_last() -> None:
    close(gradient(FAKE.to(memory_format=torch.channels_last)), GRADIENT)
    close(gradient(FAKE, make().to(memory_format=torch.channels_last)), GRADIENT)


# ----------------------------------------------------------------------------------------- graphs and differentiation


@guest("no_grad")
def test_no_grad() -> None:
    with torch.no_grad():
        value = total(FAKE.clone().requires_grad_())
    assert torch.equal(value, VALUE)
    assert not value.requires_grad


@guest("inference_mode")
def test_inference_mode(tmp_path: Path) -> None:
    """All of it within; the matcher loaded, captions encoded and real pictures made within, the loss called outside."""
    matcher().save(tmp_path / "m.vlm.pt")
    with torch.inference_mode():
        assert torch.equal(total(FAKE), VALUE)
        loaded, made = VLM.load(tmp_path / "m.vlm.pt"), make()
        text, real = made.encode_text(CAPTIONS), REAL.clone()
        loss = DualVLMLoss(loaded, lambda_vvm=0.3, lambda_vlm=1.7)
    fake = FAKE.clone().requires_grad_()
    loss(fake, text, real, class_ids=IDS).total.backward()
    assert torch.equal(fake.grad, GRADIENT)
    with pytest.raises(ValueError, match=r"stem.weight: expected an ordinary tensor, got one made under torch.inferen"):
        total(FAKE, made)
    with torch.no_grad():
        assert torch.equal(total(FAKE, made), VALUE)


@guest("torch.compile, fullgraph too")
def test_compile() -> None:
    """Traced once, which takes most of the time; `test_compilers` traces it for each of them."""
    fake, compiled = FAKE.clone().requires_grad_(), compiled_by("eager", make())
    value = total(fake, compiled)
    assert torch.equal(value, VALUE)
    close(torch.autograd.grad(value, fake)[0], GRADIENT)
    with pytest.raises(ValueError, match="fake: expected shape"):
        compiled._orig_mod(FAKE[0], TEXT, REAL)


def compiled_by(backend: str, loss: DualVLMLoss) -> DualVLMLoss:
    torch._dynamo.reset()
    # Torch 2.4 breaks the graph where it sees `next`.
    return torch.compile(loss, backend=backend, fullgraph=hasattr(torch.compiler, "set_stance"))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compilers(backend: str) -> None:
    compiled = compiled_by(backend, loss := make())
    close(total(FAKE, compiled), VALUE, 1e-4)
    close(gradient(FAKE, compiled), GRADIENT, 1e-3)
    loss.lambda_vvm = 0.0
    close(total(FAKE, compiled), total(FAKE, make(lambda_vvm=0.0)), 1e-4)


@guest("torch.utils.checkpoint, both modes")
def test_checkpointing() -> None:
    loss = make()
    for reentrant in (True, False):
        whole, part = (FAKE.clone().requires_grad_() for _ in range(2))
        checkpoint(lambda x: total(x, loss), whole, use_reentrant=reentrant).backward()
        total(checkpoint(lambda x: x * 1, part, use_reentrant=reentrant), loss).backward()
        assert torch.equal(whole.grad, GRADIENT)
        assert torch.equal(part.grad, GRADIENT)


@guest("double backward")
def test_double_backward() -> None:
    """A gradient penalty through the loss, against a difference quotient in float64."""
    loss, text, real = make().double(), TEXT.to(torch.float64), REAL.double()

    def squared(fake: Tensor, create_graph: bool = False) -> Tensor:
        fake = fake if create_graph else fake.clone().requires_grad_()
        value = loss(fake, text, real, class_ids=IDS).total
        return torch.autograd.grad(value, fake, create_graph=create_graph)[0].square().sum()

    fake, step = FAKE.double().requires_grad_(), 1e-6 * DIRECTION.double()
    (second,) = torch.autograd.grad(squared(fake, create_graph=True), fake)
    quotient = (squared(fake.detach() + step) - squared(fake.detach() - step)) / 2e-6
    torch.testing.assert_close((second * DIRECTION).sum(), quotient, rtol=1e-4, atol=0)


@guest("torch.func: grad, jvp, jacrev, jacfwd, hessian")
def test_transforms() -> None:
    loss = make()

    def value(fake: Tensor) -> Tensor:
        return total(fake, loss)

    close(torch.func.grad(value)(FAKE), GRADIENT)
    close(torch.func.jacrev(value)(FAKE), GRADIENT)
    primal, tangent = torch.func.jvp(value, (FAKE,), (DIRECTION,))
    close(primal, VALUE)
    # Torch itself makes the tangent of a number times a scalar float64.
    tangent = tangent.float()
    close(tangent, (GRADIENT * DIRECTION).sum(), 1e-4)
    close(
        torch.func.jacfwd(lambda e: value(FAKE + e.sum() * DIRECTION))(torch.zeros(2)).float(), tangent.expand(2), 1e-4
    )
    fake = FAKE.clone().requires_grad_()
    (first,) = torch.autograd.grad(value(fake), fake, create_graph=True)
    (product,) = torch.autograd.grad((first * DIRECTION).sum(), fake)
    close(torch.func.jvp(torch.func.grad(value), (FAKE,), (DIRECTION,))[1].float(), product, 1e-4)
    hessian = torch.func.hessian(lambda e: value(FAKE + e * DIRECTION))(torch.zeros(()))
    close(hessian.float(), (product * DIRECTION).sum(), 1e-3)


@guest("torch.func.vmap")
def test_vmap() -> None:
    """Over generated pictures alone, over all that a batch consists of, and beneath grad."""
    loss = make()
    fakes, reals = torch.stack([FAKE, DIRECTION]), torch.stack([REAL, FAKE])
    close(torch.func.vmap(lambda x: total(x, loss))(fakes), torch.stack([total(x) for x in fakes]))
    close(torch.func.vmap(torch.func.grad(lambda x: total(x, loss)))(fakes), torch.stack([*map(gradient, fakes)]), 1e-4)
    texts = [TEXT, Features(TEXT.local + 1, -TEXT.pooled, TEXT.mask)]
    ids = torch.tensor([[1, 2], [3, 3]])
    found = torch.func.vmap(lambda f, r, t, i: make()(f, Features(*t), r, class_ids=i), randomness="same")(
        fakes, reals, tuple(map(torch.stack, zip(*texts, strict=True))), ids
    )
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        expected = [make()(f, t, r, class_ids=i) for f, r, t, i in zip(fakes, reals, texts, ids, strict=True)]
    close(found.total, torch.stack([output.total for output in expected]))
    for name in TERMS:
        torch.testing.assert_close(found.terms[name], torch.stack([o.terms[name] for o in expected]), msg=name)
    with pytest.raises(ValueError, match=r"tokens: expected values to read, got none .*torch.func.vmap"):
        torch.func.vmap(lambda tokens: loss.encode_tokens(tokens, torch.tensor([1])))(torch.ones(2, 1, 1).long())


@guest("torch.func.functional_call of a host")
def test_functional_call() -> None:
    """With regard to the generator's parameters; the loss's are refused, not trained."""
    host = Host()
    own = {name: value for name, value in host.named_parameters() if name.startswith("generator")}

    def value(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(host, parameters, (FAKE,)).total

    host.loss.requires_grad_(True)
    found = torch.func.grad(value)(own)
    host(FAKE).total.backward()
    for name, parameter in host.generator.named_parameters():
        close(found[f"generator.{name}"], parameter.grad)
    assert not any(parameter.requires_grad for parameter in host.loss.parameters())
    host.loss.requires_grad_(True)
    with pytest.raises(ValueError, match=r"expected a frozen weight of the matcher, got one that is differentiated"):
        torch.func.grad(value)(dict(host.named_parameters()))


# ------------------------------------------------------------------------------------------ copies, threads, hosts


class Host(nn.Module):
    """A host that holds the loss inside."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = make()
        self.generator = nn.Conv2d(3, 3, 1)

    def forward(self, noise: Tensor) -> LossOutput:
        like = next(self.parameters()).dtype
        return self.loss(self.generator(noise.to(like)), TEXT.to(like), REAL.to(like), class_ids=IDS)


@guest("copy.deepcopy")
def test_deepcopy() -> None:
    loss = make(augment=RandomView(shift=0, flip=False, noise=0))
    copied = copy.deepcopy(loss)
    assert torch.equal(total(FAKE, copied), VALUE)
    copied.lambda_vvm = 0.0
    assert loss.lambda_vvm == 0.3


@guest("pickle and torch.save")
def test_pickling() -> None:
    file = io.BytesIO()
    torch.save(make(), file)
    file.seek(0)
    for copied in (pickle.loads(pickle.dumps(make())), torch.load(file, weights_only=False)):
        assert torch.equal(gradient(FAKE, copied), GRADIENT)
        assert torch.equal(copied.encode_text(CAPTIONS).local, TEXT.local)


@guest("threads")
def test_threads() -> None:
    """Two at once; what the scorer sets for the whole process is as before."""
    loss, found = make(), {}
    before = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()
    threads = [threading.Thread(target=lambda i=i: found.update({i: gradient(FAKE, loss)})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(4):
        close(found[index], GRADIENT)
    assert before == (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled())


@pytest.fixture
def one_rank(tmp_path: Path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@guest("DistributedDataParallel")
def test_ddp(one_rank: None) -> None:
    """Around the generator, and around a host that holds the loss inside."""
    host = Host()
    host(FAKE).total.backward()
    expected = host.generator.weight.grad.clone()
    host.zero_grad()
    parallel = nn.parallel.DistributedDataParallel(host.generator)
    total(parallel(FAKE), host.loss).backward()
    close(host.generator.weight.grad, expected)
    host.zero_grad()
    nn.parallel.DistributedDataParallel(host)(FAKE).total.backward()
    close(host.generator.weight.grad, expected)


@guest("fully_shard (FSDP)")
def test_fsdp(one_rank: None) -> None:
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        return
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    host = Host()
    host(FAKE).total.backward()
    expected = host.generator.weight.grad.clone()
    host.zero_grad()
    fsdp.fully_shard(host.generator, mesh=mesh)
    total(host.generator(FAKE), host.loss).backward()
    close(host.generator.weight.grad.full_tensor(), expected)


@guest("train() and eval() of the host")
def test_modes() -> None:
    host = Host()
    for mode in (True, False, True):
        host.train(mode)
        assert not any(module.training for module in host.loss.modules())
        assert host.generator.training is mode
    host.loss.image_encoder.train()
    assert torch.equal(total(FAKE, host.loss), VALUE)


@guest("requires_grad_() of the host")
def test_unfreezing() -> None:
    host = Host()
    host.requires_grad_(True)
    host(FAKE).total.backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in host.loss.parameters())
    assert host.generator.weight.grad.any()


@guest("to(), half(), bfloat16() of the host")
def test_casting() -> None:
    plain = Host()(FAKE).total
    for cast in (nn.Module.half, nn.Module.bfloat16, nn.Module.double):
        value = cast(Host())(FAKE).total
        assert value.dtype in (torch.float32, torch.float64)
        close(value.float(), plain.detach(), 0.05)


@guest("state_dict() of the host")
def test_state_dict() -> None:
    """With the loss inside, the matcher is in it; beside it, or in a tuple, it is not."""
    host = Host()
    assert {name.split(".")[0] for name in host.state_dict()} == {"loss", "generator"}
    host.load_state_dict(host.state_dict())
    host.kept = (host.loss,)
    del host.loss
    assert {name.split(".")[0] for name in host.state_dict()} == {"generator"}


def test_the_page_has_these_rows_and_no_others() -> None:
    rows = re.findall(r"^\| (?!what a guest|---)(.+?) \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert rows == list(GUESTS)
    tests = re.findall(r"\| `(test_\w+)` \|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert tests == [test.__name__ for test in GUESTS.values()]


# ------------------------------------------------------------------------------------------------- odd numbers


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e38])
def test_what_lies_in_padding_changes_nothing(value: float) -> None:
    """Words past a caption's end, and regions that an encoder says are none: neither the loss, nor its gradient, nor
    the second order."""
    assert not TEXT.mask.all()
    filled = Features(TEXT.local.masked_fill(~TEXT.mask[..., None], value), TEXT.pooled, TEXT.mask)

    class Masking(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.encoder, self.value = matcher().image_encoder, value

        def forward(self, images: Tensor) -> Features:
            image = self.encoder(images)
            mask = torch.arange(image.local.shape[1]).remainder(3).ne(0).expand_as(image.mask)
            return Features(torch.where(mask[..., None], image.local, self.value), image.pooled, mask)

    outcomes = []
    for inside, text in ((0.0, TEXT), (value, filled)):
        scorer = matcher().scorer
        loss = DualVLMLoss(image_encoder=Masking(inside), scorer=scorer, lambda_vvm=0.3, lambda_vlm=1.7)
        fake = FAKE.clone().requires_grad_()
        output = loss(fake, text, REAL, class_ids=IDS)
        (first,) = torch.autograd.grad(output.total, fake, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), fake)
        outcomes.append([output.total, *output.terms.values(), first, second])
    for expected, found in zip(*outcomes, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("half", ["vlm", "vvm"])
def test_a_term_of_weight_0_cannot_spoil_the_others(half: str) -> None:
    broken = Features(TEXT.local * math.nan, TEXT.pooled * math.inf, TEXT.mask) if half == "vlm" else TEXT
    loss = make(**{f"lambda_{half}": 0.0})
    if half == "vvm":
        encode = loss.image_encoder.forward
        loss.image_encoder.forward = lambda x, **k: encode(x, **k) if torch.is_grad_enabled() else Features(
            *(part * math.nan for part in encode(x, **k)[:2]), encode(x, **k).mask
        )  # fmt: skip
    other = [term for term in TERMS if not term.startswith(half)]
    fake, alone = (FAKE.clone().requires_grad_() for _ in range(2))
    value, terms = loss(fake, broken, REAL)
    value.backward()
    make(terms=other)(alone, TEXT, REAL).total.backward()
    assert value.isfinite()
    assert torch.equal(fake.grad, alone.grad)
    assert set(terms) == set(TERMS)
    assert terms[f"{half}_local"].isnan()


def test_two_weights_of_0_are_a_total_of_0_with_a_gradient_of_0() -> None:
    fake = FAKE.clone().requires_grad_()
    value, terms = make(lambda_vlm=0, lambda_vvm=0.0)(fake, Features(TEXT.local * math.nan, *TEXT[1:]), REAL)
    value.backward()
    assert value.dtype == torch.float32
    assert value == 0
    assert torch.equal(fake.grad, torch.zeros_like(fake))
    assert terms["vvm_local"] > 0


@pytest.mark.parametrize("name", ["lambda_vvm", "lambda_vlm", "gamma1", "gamma2", "gamma3", "gamma3_local"])
def test_numbers_set_later_are_looked_at_as_in_the_constructor(name: str) -> None:
    # Left to itself, this one follows two others, in the constructor alone.
    local = {"gamma3_local": 50.0} if name != "gamma3_local" else {}
    loss, kind = make(**local), "a positive, finite number" if name.startswith("gamma") else "a finite number"
    before = getattr(loss, name)
    for value, error in ((math.nan, ValueError), (math.inf, ValueError), ("x", TypeError), (None, TypeError)):
        with pytest.raises(error, match=f"^{name}: expected {kind}, got"):
            setattr(loss, name, value)
        if (name, value) != ("gamma3_local", None):
            with pytest.raises(error, match=f"^{name}: expected {kind}, got"):
                make(**{name: value})
    assert getattr(loss, name) == before
    setattr(loss, name, 2)
    assert torch.equal(total(FAKE, loss), total(FAKE, make(**{**local, name: 2})))


def test_terms_and_augment_set_later_are_looked_at_too() -> None:
    loss = make()
    loss.terms = ["vvm_local", "vlm_global"]
    assert loss.terms == ("vlm_global", "vvm_local")
    with pytest.raises(ValueError, match="terms: expected names of"):
        loss.terms = ["vlm_fine"]
    with pytest.raises(TypeError, match="augment: expected a function or module"):
        loss.augment = 3
    assert torch.equal(total(FAKE, loss), total(FAKE, make(terms=["vlm_global", "vvm_local"])))


# ------------------------------------------------------------------------------------------------- no negatives


def told(loss: DualVLMLoss, ids: object = None, rows: int = 2) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss(FAKE[:rows], Features(*(part[:rows] for part in TEXT)), REAL[:rows], class_ids=ids)
    assert all(warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught if "negative" in str(warning.message)]


@pytest.mark.parametrize(
    ("ids", "rows", "start"), [([7, 7], 2, "class_ids: 2 rows of one class"), (None, 1, "fake: one")]
)
def test_a_batch_without_negatives_is_told_of_once(ids: object, rows: int, start: str) -> None:
    loss = make(terms=["vlm_local", "vvm_global", "vvm_general"])
    assert told(loss, [1, 2]) == told(loss) == []
    (message,) = told(loss, ids, rows)
    assert message.startswith(start)
    assert "vlm_local, vvm_global are 0 without gradient" in message
    assert told(loss, ids, rows) == []
    assert told(make(terms=["vlm_general"]), ids, rows) == []


def test_class_ids_on_a_gpu_are_looked_at_three_times_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that says it lies there, and counts who compares it."""

    class Away(Tensor):
        looks = 0
        device = torch.device("cuda")

        def __eq__(self, other: object) -> Tensor:
            Away.looks += 1
            return self.as_subclass(Tensor) == 1

    door = make()._door
    for _ in range(5):
        door.look_at_rows(TERMS, 2, torch.tensor([1, 2]).as_subclass(Away))
    assert Away.looks == 3


# ------------------------------------------------------------------------------------------------- several ranks


def test_a_gathered_batch_under_torch_func(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks of equal rows, as one process sees them."""
    monkeypatch.setattr(distributed, "world_size", lambda group=None: 2)
    monkeypatch.setattr(distributed, "rank", lambda group=None: 1)
    monkeypatch.setattr(dist, "all_gather", lambda parts, own, group: [part.copy_(own) for part in parts])
    monkeypatch.setattr(dist, "all_reduce", lambda own, op, group: own.mul_(2))
    x = torch.tensor([1.0, 3.0])

    def value(x: Tensor) -> Tensor:
        return (distributed.gather(x) * torch.arange(1.0, 5)).sum()

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(value(leaf), leaf)
    assert expected.tolist() == [6, 8]
    assert torch.equal(torch.func.grad(value)(x), expected)
    (first,) = torch.autograd.grad(value(leaf).square(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
