"""A small conditional GAN with the dual vision-language matching loss plugged in: a template for a GAN of one's own.

    python examples/own_gan.py                  # a minute or two on a CPU: shows that everything runs
    python examples/own_gan.py --steps 1200     # goes on from own_gan/checkpoint.pt

Synthetic birds at 64 pixels and the packaged matcher, on the GPU where there is one. The lines that belong to the loss
end in `# VLM`; all others are the GAN. docs/porting.md explains each.
"""

import argparse
from itertools import count, pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.data import DataLoader

from vlm_plugin import VLM, DualVLMLoss  # VLM
from vlm_plugin.augment import RandomView  # VLM
from vlm_plugin.data import CaptionedImages, collate, make_birds, open_split
from vlm_plugin.report.sheets import sample_sheet

NOISE, WIDTH, BATCH = 64, 128, 16  # WIDTH is that of the packaged matcher's sentence vectors
LAMBDA_VVM, LAMBDA_VLM, WARM_UP = 0.02, 0.04, 100  # VLM: about the adversarial gradient at the fake image


class Generator(nn.Module):
    def __init__(self, channels: tuple[int, ...] = (128, 128, 64, 32, 16)) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(NOISE + WIDTH, channels[0] * 16), nn.Unflatten(1, (channels[0], 4, 4))]
        for a, b in pairwise(channels):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], 3, 3, padding=1), nn.Tanh())

    def forward(self, noise: Tensor, sentence: Tensor) -> Tensor:
        return self.layers(torch.cat([noise, sentence], dim=1))


class Discriminator(nn.Module):
    def __init__(self, channels: tuple[int, ...] = (3, 16, 32, 64, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in pairwise(channels):
            layers += [spectral_norm(nn.Conv2d(a, b, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Flatten(), spectral_norm(nn.Linear(channels[-1] * 16, WIDTH)))

    def forward(self, images: Tensor, sentence: Tensor) -> Tensor:
        return (self.layers(images) * (1 + sentence)).sum(1) / WIDTH**0.5


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200, help="generator updates in all")
    parser.add_argument("--out", type=Path, default=Path("own_gan"), help="for data, checkpoint and pictures")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)

    data = make_birds(arguments.out / "birds", train=400, validation=0, test=80)
    images = CaptionedImages(open_split(data, "train"), 64, train=True)
    loader = DataLoader(images, BATCH, shuffle=True, drop_last=True, collate_fn=collate)
    batches = (batch for _ in count() for batch in loader)

    generator, discriminator = Generator().to(device), Discriminator().to(device)
    optimizer_g = torch.optim.Adam(generator.parameters(), 2e-4, (0.0, 0.9))
    optimizer_d = torch.optim.Adam(discriminator.parameters(), 4e-4, (0.0, 0.9))
    names = ("generator", "discriminator", "optimizer_g", "optimizer_d")  # the matcher is in none of them
    parts = dict(zip(names, (generator, discriminator, optimizer_g, optimizer_d), strict=True))
    vlm = VLM.load("birds.vlm.pt")  # VLM
    vlm_loss = DualVLMLoss(vlm, lambda_vvm=0.0, lambda_vlm=0.0, augment=RandomView()).to(device)  # VLM

    checkpoint, first = arguments.out / "checkpoint.pt", 0
    if checkpoint.is_file():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        first = saved["step"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])

    for step in range(first, arguments.steps):
        batch = next(batches)
        real = batch.images.to(device)
        text = vlm_loss.encode_text(batch.captions)  # VLM
        sentence = F.normalize(text.pooled) * WIDTH**0.5
        fake = generator(torch.randn(BATCH, NOISE, device=device), sentence)

        on_real, on_fake = discriminator(real, sentence), discriminator(fake.detach(), sentence)
        mismatched = discriminator(real, sentence.roll(1, 0))
        loss_d = F.relu(1 - on_real).mean() + (F.relu(1 + on_fake).mean() + F.relu(1 + mismatched).mean()) / 2
        optimizer_d.zero_grad()
        loss_d.backward()
        optimizer_d.step()

        loss_g = -discriminator(fake, sentence).mean()
        ramp = min((step + 1) / WARM_UP, 1.0)  # VLM
        vlm_loss.lambda_vvm, vlm_loss.lambda_vlm = LAMBDA_VVM * ramp, LAMBDA_VLM * ramp  # VLM
        dual, terms = vlm_loss(fake, text, real, class_ids=batch.class_ids)  # VLM
        optimizer_g.zero_grad()
        (loss_g + dual).backward()  # VLM: + dual
        optimizer_g.step()

        if step % 20 == 0 or step == arguments.steps - 1:
            floors = vlm_loss(real, text, real.flip(3), class_ids=batch.class_ids).terms  # VLM: of real pairs
            shown = "  ".join(f"{name} {terms[name]:.2f} (floor {floors[name]:.2f})" for name in terms)  # VLM
            print(f"step {step}  d {loss_d:.2f}  g {loss_g:.2f}  {shown}", flush=True)
    torch.save({"step": max(first, arguments.steps), **{n: p.state_dict() for n, p in parts.items()}}, checkpoint)

    tests = CaptionedImages(open_split(data, "test")[::10], 64, train=False)  # a bird of each class
    batch = collate([tests[index] for index in range(len(tests))])
    sentence = F.normalize(vlm.encode_text(batch.captions).pooled) * WIDTH**0.5
    generator.eval()
    with torch.no_grad():
        rows = [generator(torch.randn(4, NOISE, device=device), s.expand(4, -1)).cpu() for s in sentence]
    sample_sheet(arguments.out / "samples.png", batch.captions, {"real": list(batch.images[:, None]), "drawn": rows})


if __name__ == "__main__":
    main()
