"""Several processes compute the gradient of one process on the whole batch.

Four processes are started once (gloo, a file as meeting point, no ports). They work as one group of four and as two
groups of two, write down what they found, and the tests below compare it with this process.
"""

from __future__ import annotations

import datetime
import multiprocessing
import os
import time
import traceback

import pytest
import reference
import torch
import torch.distributed as dist
from reference import TinyEncoder, pictures, random_features, sharpen
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vlm_plugin import DualVLMLoss, Features, MatchingScoreBlock, distributed
from vlm_plugin.baselines.attngan.losses import damsm_loss

RANKS = 4
# Two rows a rank: each rank's longest caption, its padding, is another one.
LENGTHS = [2, 5, 1, 3, 1, 1, 4, 2]
GROUPS = [3, 1, 3, 2, 2, 3, -9, 1]
CONTRASTIVE = [name for name in reference.NAMES if not name.endswith("general")]


def make_generator():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3 * 8 * 8), nn.Tanh()).double()


def make_loss(**arguments):
    torch.manual_seed(1)
    scorer = sharpen(MatchingScoreBlock(6, layers=1, heads=2)).double()
    encoder = TinyEncoder(some_regions=True).double()
    return DualVLMLoss(image_encoder=encoder, scorer=scorer, lambda_vvm=0.3, lambda_vlm=1.7, **arguments)


def rows(seed, part):
    """Noise, captions (padded to the longest of these rows), real images and classes of some rows of a batch."""
    torch.manual_seed(seed)
    noise = torch.randn(len(LENGTHS), 5, dtype=torch.float64)[part]
    text, width = random_features(LENGTHS, seed=seed), max(LENGTHS[part])
    text = Features(text.local[part, :width], text.pooled[part], text.mask[part, :width])
    return noise, text, pictures(len(LENGTHS), seed)[part], torch.tensor(GROUPS)[part]


def step(generator, loss, seed, part, classes=True):
    """One generator step; total, terms and the generator's gradient. A generator in float32 runs in autocast."""
    noise, text, real, groups = rows(seed, part)
    dtype = next(generator.parameters()).dtype
    if mixed := dtype == torch.float32:
        noise, real, text = noise.float(), real.float(), Features(text.local.float(), text.pooled.float(), text.mask)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        fake = generator(noise).view(-1, 3, 8, 8)
        total, terms = loss(fake, text, real, class_ids=groups if classes else None)
    generator.zero_grad()
    total.backward()
    return {
        "total": total.detach(),
        **terms,
        "gradient": torch.cat([p.grad.flatten() for p in generator.parameters()]),
    }


def share(index, count):
    size = len(LENGTHS) // count
    return slice(index * size, (index + 1) * size)


# What the processes of a group of four do, and with which arguments of the loss.
SETTINGS = {
    "all terms with classes": ({}, True),
    "all terms": ({}, False),
    "contrastive terms": ({"terms": CONTRASTIVE}, True),
    "global terms": ({"terms": ["vlm_global"]}, True),
    "another level of each half": ({"terms": ["vlm_local", "vvm_global"]}, True),
    "a half without contrastive terms": ({"terms": ["vlm_local", "vvm_general"]}, False),
    "general terms": ({"terms": ["vlm_general", "vvm_general"]}, True),
}


def damsm(part):
    """AttnGAN's DAMSM of some rows; its parts, and the gradient at the pictures' features."""
    text, ids = rows(0, part)[1], torch.tensor(GROUPS)[part]
    every = random_features([4] * len(LENGTHS), seed=5)
    image = Features(*(value[part].clone() for value in every))
    leaves = [image.local.requires_grad_(), image.pooled.requires_grad_()]
    parts = damsm_loss(image, text, ids)
    return {"parts": torch.stack(parts).detach(), "gradient": torch.autograd.grad(sum(parts), leaves)}


class Blind(torch.autograd.Function):
    """A gather that forgets the other ranks' gradient: the usual mistake."""

    @staticmethod
    def forward(ctx, tensor, group):
        ctx.size = len(tensor)
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, tensor.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        return torch.zeros_like(gradient[: ctx.size]), None


def gather_facts(rank):
    """What `gather` does to values and gradients, with other users of the same gradient around it."""
    x = torch.full((2, 3), float(rank + 1), requires_grad=True)
    other = torch.zeros(2 * RANKS, 3, requires_grad=True)
    earlier = other * 1.0  # made before the gather, so its backward comes after the gather's
    gathered = distributed.gather(x)
    weights = torch.arange(2.0 * RANKS * 3).view(-1, 3) * (rank + 1)
    # The sum hands one and the same gradient tensor to both of its sides.
    ((gathered + earlier) * weights).sum().backward()
    padded = distributed.gather_features(
        Features(torch.full((1, rank + 1, 2), 1.0 + rank), torch.ones(1, 2), torch.ones(1, rank + 1, dtype=torch.bool))
    )
    pooled = torch.full((1, 2), float(rank))
    short = distributed.gather_features(Features(torch.ones(1, 2, 2), pooled, torch.ones(1, 2).bool()), local=False)
    again = distributed.gather(x)
    (first,) = torch.autograd.grad((again**2).sum(), x, create_graph=True)
    try:
        first.sum().backward()
    except RuntimeError as error:
        second = str(error)
    return {
        "second": second, "short": tuple(short),
        "gathered": gathered.detach(), "gradient": x.grad, "other": other.grad, "weights": weights,
        "local": padded.local, "mask": padded.mask,
    }  # fmt: skip


def unequal(rank, classes):
    """The error of a batch that is one row short on the last rank."""
    noise, text, real, groups = rows(0, share(rank, RANKS))
    if rank == RANKS - 1:
        noise, text, real, groups = noise[:1], Features(*(p[:1] for p in text)), real[:1], groups[:1]
    try:
        make_loss()(pictures(len(noise)), text, real, class_ids=groups if classes else None)
    except ValueError as error:
        return str(error)
    return "no error"


def ids_on_some(rank):
    """The error of class ids that the last rank alone has."""
    _, text, real, groups = rows(0, share(rank, RANKS))
    try:
        make_loss()(pictures(len(real)), text, real, class_ids=groups if rank == RANKS - 1 else None)
    except ValueError as error:
        return str(error)
    return "no error"


def outside(group):
    """The error of a loss whose processes are others."""
    _, text, real, _ = rows(0, share(0, RANKS))
    try:
        make_loss(process_group=group)(pictures(len(real)), text, real)
    except ValueError as error:
        return str(error)
    return "no error"


def sent(rank, *terms):
    """Shapes of what a loss with these terms sends to other ranks."""
    shapes, original = [], dist.all_gather
    dist.all_gather = lambda parts, tensor, **k: shapes.append(tuple(tensor.shape)) or original(parts, tensor, **k)
    try:
        _, text, real, groups = rows(0, share(rank, RANKS))
        make_loss(terms=terms)(pictures(len(real)), text, real, class_ids=groups)
    finally:
        dist.all_gather = original
    return shapes


def work(rank, folder):
    """Everything that one process does."""
    try:
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS,
            timeout=datetime.timedelta(seconds=120),
        )  # fmt: skip
        found = {}
        generator = DistributedDataParallel(make_generator())
        for name, (arguments, classes) in SETTINGS.items():
            found[name] = step(generator, make_loss(**arguments), 0, share(rank, RANKS), classes)
        mixed = DistributedDataParallel(make_generator().float())
        found["mixed"] = step(mixed, make_loss().float(), 0, share(rank, RANKS))
        right, distributed._Gather = distributed._Gather, Blind
        found["control"] = step(generator, make_loss(), 0, share(rank, RANKS))
        distributed._Gather = right

        pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        mine, index = pairs[rank // 2], rank % 2
        half = DistributedDataParallel(make_generator(), process_group=mine)
        found["pair"] = step(half, make_loss(process_group=mine), rank // 2, share(index, 2))

        found["damsm"] = damsm(share(rank, RANKS))
        found["gather"] = gather_facts(rank)
        found["sent"] = [sent(rank, *terms) for terms in (["vlm_general"], ["vlm_global", "vvm_general"])]
        found["unequal"] = [unequal(rank, classes) for classes in (False, True)]
        found["ids on some"] = ids_on_some(rank)
        found["outside"] = outside(pairs[1 - rank // 2])
        torch.save(found, f"{folder}/{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        with open(f"{folder}/{rank}.error", "w", encoding="utf-8") as file:
            traceback.print_exc(file=file)
        raise


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of the four processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "vlm_plugin", "reference"])
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        processes = [context.Process(target=work, args=(rank, str(folder)), daemon=True) for rank in range(RANKS)]
        for process in processes:
            process.start()
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
    deadline = time.monotonic() + 200
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0))
    hanging = [process for process in processes if process.is_alive()]
    for process in hanging:
        process.kill()
    errors = [path.read_text() for path in sorted(folder.glob("*.error"))]
    assert not errors, "\n".join(errors)
    assert not hanging, f"{len(hanging)} of {RANKS} processes did not end"
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def single(seed, classes=True, **arguments):
    return step(make_generator(), make_loss(**arguments), seed, slice(0, len(LENGTHS)), classes)


@pytest.mark.parametrize("name", SETTINGS)
def test_four_processes_equal_one_on_the_whole_batch(found, name):
    """Gradient after DistributedDataParallel; total and terms averaged over ranks."""
    arguments, classes = SETTINGS[name]
    expected = single(0, classes, **arguments)
    for result in found:
        assert result[name].keys() == expected.keys()
        torch.testing.assert_close(result[name]["gradient"], expected["gradient"], rtol=1e-9, atol=1e-9)
    for key in expected.keys() - {"gradient"}:
        mean = sum(result[name][key] for result in found) / RANKS
        torch.testing.assert_close(mean, expected[key], rtol=1e-9, atol=1e-9)
    assert expected["gradient"].abs().max() > 1e-2


def test_two_processes_of_a_process_group_equal_one(found):
    """Two groups of two at the same time, each on a batch of its own: negatives come from the own group alone."""
    for rank, result in enumerate(found):
        expected = single(rank // 2)
        torch.testing.assert_close(result["pair"]["gradient"], expected["gradient"], rtol=1e-9, atol=1e-9)
    assert (found[0]["pair"]["gradient"] - found[2]["pair"]["gradient"]).abs().max() > 1e-2


def test_damsm_of_four_processes(found):
    """Plain AttnGAN has the negatives of every rank as well; its trainer averages the gradients."""
    expected = damsm(slice(0, len(LENGTHS)))
    for rank, result in enumerate(found):
        torch.testing.assert_close(result["damsm"]["parts"], expected["parts"], rtol=1e-9, atol=1e-9)
        for own, whole in zip(result["damsm"]["gradient"], expected["gradient"], strict=True):
            torch.testing.assert_close(own / RANKS, whole[share(rank, RANKS)], rtol=1e-9, atol=1e-9)
    assert all(gradient.abs().max() > 1e-3 for gradient in expected["gradient"])


def test_autocast(found):
    """Generator and encoder in bfloat16, scores in float32: the same up to the former's rounding."""
    expected = step(make_generator().float(), make_loss().float(), 0, slice(0, len(LENGTHS)))
    exact = single(0)
    for result in found:
        assert result["mixed"]["total"].dtype == result["mixed"]["gradient"].dtype == torch.float32
        difference = (result["mixed"]["gradient"] - expected["gradient"]).norm()
        assert difference < 0.02 * expected["gradient"].norm()
        # It was in bfloat16.
        assert (expected["gradient"] - exact["gradient"]).norm() > 1e-4 * exact["gradient"].norm()
    mean = sum(result["mixed"]["total"] for result in found) / RANKS
    torch.testing.assert_close(mean, expected["total"], rtol=1e-2, atol=0)


def test_a_gather_without_gradient_would_show(found):
    """The same comparison with a blind gather fails by far: values agree, the gradient does not."""
    expected = single(0)
    mean = sum(result["control"]["total"] for result in found) / RANKS
    torch.testing.assert_close(mean, expected["total"], rtol=1e-9, atol=1e-9)
    assert (found[0]["control"]["gradient"] - expected["gradient"]).abs().max() > 1e-2


def test_gather(found):
    """Rank order; the gradient is the sum over ranks of the own slice, and nobody else's gradient is touched."""
    for rank, result in enumerate(found):
        facts = result["gather"]
        assert torch.equal(facts["gathered"][:, 0], torch.tensor([1.0, 1, 2, 2, 3, 3, 4, 4]))
        total = sum(other["gather"]["weights"] for other in found)
        assert torch.equal(facts["gradient"], total[2 * rank : 2 * rank + 2])
        assert torch.equal(facts["other"], facts["weights"])


def test_gather_features_pads_to_the_longest(found):
    for result in found:
        local, mask = result["gather"]["local"], result["gather"]["mask"]
        assert local.shape == (RANKS, RANKS, 2)
        assert mask.dtype == torch.bool
        for i in range(RANKS):
            assert mask[i].tolist() == [k <= i for k in range(RANKS)]
            assert (local[i, : i + 1] == i + 1).all()
            assert not local[i, i + 1 :].any()


def test_local_vectors_that_nobody_asks_for_stay(found):
    """The ranks' batches are told all the same; there are rows without any local vector."""
    for result in found:
        local, pooled, mask = result["gather"]["short"]
        assert (local.shape, mask.shape) == ((RANKS, 0, 2), (RANKS, 0))
        assert torch.equal(pooled, torch.arange(float(RANKS))[:, None].expand(-1, 2))


def test_a_second_derivative_through_the_gather_is_an_error(found):
    """It would be of this rank's share alone, without a word."""
    for result in found:
        assert "once_differentiable" in result["gather"]["second"]


def test_batches_of_unequal_size_are_an_error_on_every_rank(found):
    for result in found:
        for message in result["unequal"]:
            assert message.startswith("expected the same batch size on every rank")
            assert message.endswith("got 1 to 2")


def test_class_ids_on_some_ranks_alone_are_an_error_on_every_rank(found):
    for result in found:
        assert result["ids on some"] == "class_ids: expected on every rank or on none, got it on some"


def test_a_process_outside_the_group_is_told(found):
    for rank, result in enumerate(found):
        assert result["outside"] == f"process_group: expected one that rank {rank} belongs to, got another"


def test_what_is_off_is_not_sent(found):
    """General terms compare with nobody; a global one sends the pooled vectors of its own half, and class ids."""
    for result in found:
        nothing, pooled = result["sent"]
        assert nothing == []
        assert pooled == [(2, 6), (2,), (2, 6)]


def test_one_process_gathers_nothing():
    assert distributed.world_size() == 1
    assert distributed.rank() == 0
    x = torch.ones(2)
    assert distributed.gather(x) is x
    features = random_features([2, 1])
    assert distributed.gather_features(features) is features
