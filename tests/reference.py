"""Slow, obviously right twins of the method: python loops over images, anchors, regions and words, one pair at a time.

Written from the method's equations alone; nothing here calls the package, except for the type `Features`, which only
carries the inputs. What the twins return is differentiable, so that gradients can be compared as well. The last part
makes small networks and batches that feed both sides.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from vlm_plugin.features import Features

NAMES = ("vlm_local", "vlm_global", "vlm_general", "vvm_local", "vvm_global", "vvm_general")


def dot(u, v):
    return sum(u[k] * v[k] for k in range(len(u)))


def cosine(u, v):
    return dot(u, v) / (dot(u, u).sqrt() * dot(v, v).sqrt())


def valid(features, i):
    """The local vectors of sample i that its mask admits, as a list."""
    return [features.local[i, k] for k in range(features.local.shape[1]) if bool(features.mask[i, k])]


def attention(regions, word, gamma1):
    """alpha_r = softmax over r of gamma1 * cos(x_r, a)."""
    weights = [(gamma1 * cosine(region, word)).exp() for region in regions]
    return [weight / sum(weights) for weight in weights]


def context(regions, word, gamma1):
    """c = sum_r alpha_r x_r."""
    return sum(alpha * region for alpha, region in zip(attention(regions, word, gamma1), regions, strict=True))


def local_score(regions, words, gamma1, gamma2):
    """(1 / gamma2) * log sum_j exp(gamma2 * cos(c_j, a_j))."""
    return sum((gamma2 * cosine(context(regions, word, gamma1), word)).exp() for word in words).log() / gamma2


def table(rows):
    return torch.stack([torch.stack(row) for row in rows])


def local_scores(image, anchor, gamma1, gamma2):
    return table(
        [
            [local_score(valid(image, i), valid(anchor, j), gamma1, gamma2) for j in range(len(anchor.pooled))]
            for i in range(len(image.pooled))
        ]
    )


def global_scores(image, anchor):
    return table([[cosine(u, v) for v in anchor.pooled] for u in image.pooled])


def posterior_loss(scores, gamma3, groups=None):
    """Mean of -log P(A_i | I_i) plus mean of -log P(I_i | A_i); pairs i != j of one group are no negatives."""
    batch = len(scores)
    losses = []
    for i in range(batch):
        candidates = [j for j in range(batch) if j == i or groups is None or groups[i] != groups[j]]
        anchor_given_image = (gamma3 * scores[i, i]).exp() / sum((gamma3 * scores[i, j]).exp() for j in candidates)
        image_given_anchor = (gamma3 * scores[i, i]).exp() / sum((gamma3 * scores[j, i]).exp() for j in candidates)
        losses.append(-anchor_given_image.log() - image_given_anchor.log())
    return sum(losses) / batch


def general_loss(logits):
    """-log of the score, a score being the sigmoid of the logit."""
    return sum(-(1 / (1 + (-logit).exp())).log() for logit in logits) / len(logits)


def layer_norm(x, norm):
    mean = sum(x) / len(x)
    variance = sum((value - mean) ** 2 for value in x) / len(x)
    return (x - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def attend(tokens, layer):
    """Multi-head self-attention, head by head and token by token."""
    block = layer.self_attn
    width, heads = block.embed_dim, block.num_heads
    size = width // heads
    matrices, shifts = block.in_proj_weight.split(width), block.in_proj_bias.split(width)
    queries, keys, values = (
        [matrix @ token + shift for token in tokens] for matrix, shift in zip(matrices, shifts, strict=True)
    )
    outputs = []
    for query in queries:
        parts = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            weights = [(query[part] @ key[part] / math.sqrt(size)).exp() for key in keys]
            parts.append(sum(w * v[part] for w, v in zip(weights, values, strict=True)) / sum(weights))
        outputs.append(block.out_proj.weight @ torch.cat(parts) + block.out_proj.bias)
    return outputs


def matching_logits(scorer, image, anchor, kind):
    """Each pair's valid tokens alone: norm, type, pre-norm transformer with GELU, one number a token, mean."""
    types = scorer.token_types.weight
    first = {"caption": 2, "image": 4}[kind]
    logits = []
    for i in range(len(image.pooled)):
        tokens = [layer_norm(x, scorer.input_norm) + types[0] for x in valid(image, i)]
        tokens += [layer_norm(image.pooled[i], scorer.input_norm) + types[1]]
        tokens += [layer_norm(a, scorer.input_norm) + types[first] for a in valid(anchor, i)]
        tokens += [layer_norm(anchor.pooled[i], scorer.input_norm) + types[first + 1]]
        for layer in scorer.transformer.layers:
            added = attend([layer_norm(t, layer.norm1) for t in tokens], layer)
            tokens = [t + a for t, a in zip(tokens, added, strict=True)]
            hidden = [layer.linear1.weight @ layer_norm(t, layer.norm2) + layer.linear1.bias for t in tokens]
            hidden = [h * 0.5 * (1 + torch.erf(h / math.sqrt(2))) for h in hidden]
            tokens = [t + layer.linear2.weight @ h + layer.linear2.bias for t, h in zip(tokens, hidden, strict=True)]
        numbers = [
            scorer.to_score.weight[0] @ layer_norm(t, scorer.transformer.norm) + scorer.to_score.bias[0] for t in tokens
        ]
        logits.append(sum(numbers) / len(numbers))
    return torch.stack(logits)


def dual_terms(image, text, real, scorer, groups=None, gamma1=4.0, gamma2=5.0, gamma3=10.0, gamma3_local=50.0):
    """The six terms by name."""
    terms = {}
    for half, anchor, kind in (("vlm", text, "caption"), ("vvm", real, "image")):
        terms[f"{half}_local"] = posterior_loss(local_scores(image, anchor, gamma1, gamma2), gamma3_local, groups)
        terms[f"{half}_global"] = posterior_loss(global_scores(image, anchor), gamma3, groups)
        terms[f"{half}_general"] = general_loss(matching_logits(scorer, image, anchor, kind))
    return terms


def total(terms, lambda_vvm, lambda_vlm):
    """lambda1 * L_VVM + lambda2 * L_VLM over the terms that are there."""
    return sum((lambda_vvm if name.startswith("vvm") else lambda_vlm) * value for name, value in terms.items())


# ---------------------------------------------------------------------------------------- what feeds both sides


class TinyEncoder(nn.Module):
    """Images `(B, 3, 8, 8)` -> four regions and a global vector; counts its calls.

    `some_regions` masks regions by what the picture shows, so the same picture has the same mask in every batch;
    `pair` returns DAMSM's `(regions, code)` instead; `noisy` puts a BatchNorm and a dropout inside.
    """

    def __init__(self, dim=6, some_regions=False, pair=False, noisy=False):
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # every one of them has the same weights
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, dim, 4, stride=4)
            self.code = nn.Linear(dim, dim)
        self.noise = nn.Sequential(nn.BatchNorm2d(dim), nn.Dropout(0.5)) if noisy else nn.Identity()
        self.some_regions, self.pair = some_regions, pair
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        regions = self.noise(self.conv(images))
        code = self.code(regions.tanh().mean((2, 3)))
        if self.pair:
            return regions, code
        local = regions.flatten(2).transpose(1, 2)
        mask = torch.ones(local.shape[:2], dtype=torch.bool, device=local.device)
        if self.some_regions:
            mask = local.detach().sum(-1) > 0
            mask[:, 0] = True
        return Features(local, code, mask)


class TinyTextEncoder(nn.Module):
    """Any module that maps (tokens, lengths) to `Features`."""

    def __init__(self, words=20, dim=6):
        super().__init__()
        self.table = nn.Embedding(words, dim)

    def forward(self, tokens, lengths):
        local = self.table(tokens)
        mask = torch.arange(tokens.shape[1]) < torch.as_tensor(lengths)[:, None]
        return Features(local, (local * mask[..., None]).sum(1), mask)


def random_features(lengths, dim=6, seed=0, dtype=torch.float64, size=None):
    """`Features` with the given numbers of valid vectors; padding holds numbers that must not matter."""
    generator = torch.Generator().manual_seed(seed)
    size = size or max(lengths)
    local = torch.randn(len(lengths), size, dim, generator=generator, dtype=torch.float64)
    pooled = torch.randn(len(lengths), dim, generator=generator, dtype=torch.float64)
    mask = torch.arange(size) < torch.tensor(lengths)[:, None]
    return Features(local.to(dtype), pooled.to(dtype), mask)


def pictures(batch, seed=0, dtype=torch.float64, size=8):
    """Images in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, size, size, generator=generator, dtype=torch.float64).mul(2).sub(1).to(dtype)


def sharpen(scorer):
    """Larger weights than the initial ones, so that a scorer's terms differ from log 2 by more than rounding."""
    with torch.no_grad():
        for name, parameter in scorer.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
            elif name.endswith("bias"):
                parameter.add_(0.1)
    return scorer
