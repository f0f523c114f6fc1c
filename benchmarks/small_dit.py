"""A small diffusion model, trained on this machine, for ``dit`` and ``diff_feat``: an autoencoder, then a transformer.

Both are networks of the library diffusers (the extra ``diffusion``), trained on pictures of the scene generator without
their labels, of a seed and of owners of their own, so that no picture of a study on ``scenes`` is seen. The folder is
a ``DiTPipeline`` as diffusers saves it (``transformer``, ``vae``, ``scheduler``); ``untrained/transformer`` is the same
transformer before any training, as diffusers draws it, and ``losses.json``, ``look.png`` are what came of it.

    OMP_NUM_THREADS=1 uv run python benchmarks/small_dit.py train weights/small_dit
    OMP_NUM_THREADS=1 uv run python benchmarks/small_dit.py places weights/small_dit --out places.json

The second scores every block at some timesteps on the pictures of ``ablation_diff_feat_trained``, all labels known and
all pictures in one place: by the criterion of the clients' search on validation pictures, and by a ridge regression on
training pictures, judged on validation and test pictures.

The transformer is unconditional: in training it sees the label that stands for none, and no other. Its last layers
begin at 0, so that every block begins as the identity; what is saved is a mean of its weights over steps.

Sources: Peebles and Xie 2023, "Scalable Diffusion Models with Transformers" (ICCV, DiT); Rombach et al. 2022 (the
autoencoder); Ho et al. 2020, "Denoising Diffusion Probabilistic Models" (the objective).
"""

from __future__ import annotations

import argparse
import json
import time
import tomllib
from pathlib import Path
from typing import Any, NamedTuple, cast

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from fedmlic.corpus import Corpus, open_corpus
from fedmlic.diffusion import NUM_TIMESTEPS, alphas, of_any_block
from fedmlic.metrics import average_precisions
from fedmlic.pixel_scale import to_float
from fedmlic.ridge_scores import cross_scores, dual_ridge
from fedmlic.seeds import stream, torch_global_stream, torch_stream
from fedmlic.spec import build

PICTURES = (
    "scenes(preset='tiny', seed={seed}, num_images={images}, population={owners}, owner_sizes='constant', "
    "val_fraction=0, num_test=256, colour_reliability=1.0, cardinality=2.0)"
)
"""The look of the recipe ``methods/diff_feat``; its seed is 0."""

OWNER = 20
"""Pictures of an owner."""

KL_WEIGHT = 1e-4
"""Of the autoencoder's divergence per latent number, beside its squared error per pixel."""

MEAN_DECAY = 0.998
"""Of the mean of the transformer's weights."""

SHOWN = 16
"""Pictures in a row of ``look.png``."""

STUDY = Path(__file__).parents[1] / "sim" / "studies" / "ablation_diff_feat_trained.toml"
"""Whose pictures ``places`` looks at."""

TIMESTEPS = (0, 10, 50, 100, 200, 300, 500, 700, 900)
"""Of the grid."""

ALPHAS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
"""Penalties that are tried."""

BEGIN = (12 / 28, 100)
"""Where Diff-Feat's search begins, the block as a share of all: alpha is chosen there."""


class Sizes(NamedTuple):
    """How large everything is, and how long it trains.

    Attributes:
        images: training pictures.
        vae_channels: of the autoencoder by stage; one halving of the side less than stages.
        vae_steps: of the autoencoder.
        depth: blocks of the transformer.
        width: of the transformer, a multiple of ``head``.
        head: width of an attention head.
        patch: side of the transformer's patches, in places of the latent.
        steps: of the transformer.
        batch: pictures of a step.
        seed: of pictures, weights, order and noise.
    """

    images: int = 12_000
    vae_channels: tuple[int, ...] = (16, 16)
    vae_steps: int = 1500
    depth: int = 6
    width: int = 128
    head: int = 32
    patch: int = 2
    steps: int = 2400
    batch: int = 16
    seed: int = 7001


def corpus_of(sizes: Sizes) -> Corpus:
    """Training pictures (``train``) and held-out pictures of nobody (``test``), labels unused."""
    owners = max(sizes.images // OWNER, 1)
    return open_corpus(build("dataset", PICTURES.format(seed=sizes.seed, images=sizes.images, owners=owners)))


def pixels_of(corpus: Corpus, rows: NDArray[np.int64]) -> Tensor:
    """float32 ``[rows, 3, height, width]`` from -1 to 1."""
    return torch.from_numpy(corpus.images.take(rows)).permute(0, 3, 1, 2).float() / 127.5 - 1


class Progress:
    """A line every twentieth of some steps: the mean loss since the last, and the time left.

    Args:
        name: of what trains.
        steps: in all.
    """

    def __init__(self, name: str, steps: int) -> None:
        self._name, self._steps, self._every = name, steps, max(steps // 20, 1)
        self._start, self._losses = time.monotonic(), list[float]()

    def __call__(self, step: int, loss: float) -> None:
        """After step ``step``, from 0."""
        self._losses.append(loss)
        done = step + 1
        if done % self._every == 0 or done == self._steps:
            left = (time.monotonic() - self._start) / done * (self._steps - done)
            mean = float(np.mean(self._losses))
            print(f"{self._name}: step {done} of {self._steps}, loss {mean:.4f}, {left:.0f} s left", flush=True)
            self._losses.clear()


def optimiser_of(network: nn.Module, rate: float, steps: int) -> tuple[torch.optim.Optimizer, Any]:
    """AdamW, its rate rising over the first twentieth of the steps and falling to 0 along a cosine."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.0, betas=(0.9, 0.99))
    rising = max(steps // 20, 1)

    def share(step: int) -> float:
        return min((step + 1) / rising, 0.5 * (1 + float(np.cos(np.pi * step / steps))))

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, share)


def stepped(optimiser: torch.optim.Optimizer, schedule: Any, loss: Tensor) -> None:  # noqa: ANN401  (torch's own type is private)
    """One step down ``loss``, gradients cut at norm 1."""
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], 1.0)
    optimiser.step()
    schedule.step()


def trained_vae(corpus: Corpus, sizes: Sizes) -> Any:  # noqa: ANN401  (diffusers has no types)
    """An AutoencoderKL, its ``scaling_factor`` one over the standard deviation of its latents."""
    stages = len(sizes.vae_channels)
    with torch_global_stream(sizes.seed, "small_dit/vae"):
        vae = diffusers.AutoencoderKL(
            block_out_channels=sizes.vae_channels,
            down_block_types=["DownEncoderBlock2D"] * stages,
            up_block_types=["UpDecoderBlock2D"] * stages,
            latent_channels=4,
            norm_num_groups=8,
            layers_per_block=0,
            sample_size=corpus.image_shape[0],
            mid_block_add_attention=False,
        )
    order, noise = stream(sizes.seed, "small_dit/vae/order"), torch_stream(sizes.seed, "small_dit/vae/noise")
    optimiser, schedule = optimiser_of(vae, 5e-3, sizes.vae_steps)
    rows, progress = np.asarray(corpus.splits["train"]), Progress("autoencoder", sizes.vae_steps)
    for step in range(sizes.vae_steps):
        pixels = pixels_of(corpus, order.choice(rows, sizes.batch))
        found = vae.encode(pixels).latent_dist
        loss = F.mse_loss(vae.decode(found.sample(noise)).sample, pixels)
        loss = loss + KL_WEIGHT * found.kl().mean() / found.mean[0].numel()
        stepped(optimiser, schedule, loss)
        progress(step, loss.item())
    vae.eval()
    spread = float(latents_of(vae, corpus, rows[:: max(len(rows) // 1000, 1)]).std())
    vae.register_to_config(scaling_factor=vae.config.scaling_factor / spread)
    return vae


@torch.no_grad()
def latents_of(vae: Any, corpus: Corpus, rows: NDArray[np.int64]) -> Tensor:  # noqa: ANN401
    """float32 ``[rows, 4, side, side]``, modes, scaled: what ``dit`` gives its transformer before noise."""
    parts = [vae.encode(pixels_of(corpus, rows[at : at + 64])).latent_dist.mode() for at in range(0, len(rows), 64)]
    return cast(Tensor, torch.cat(parts) * vae.config.scaling_factor)


def transformer_of(sizes: Sizes, side: int) -> Any:  # noqa: ANN401
    """A DiTTransformer2DModel that predicts noise, without classes, as diffusers draws its weights.

    Args:
        sizes: of it.
        side: of the latents.
    """
    with torch_global_stream(sizes.seed, "small_dit/transformer"):
        return diffusers.DiTTransformer2DModel(
            num_attention_heads=sizes.width // sizes.head,
            attention_head_dim=sizes.head,
            num_layers=sizes.depth,
            sample_size=side,
            patch_size=sizes.patch,
            in_channels=4,
            out_channels=4,
            num_embeds_ada_norm=1,
        )


def from_zero(transformer: Any) -> None:  # noqa: ANN401
    """Let every block begin as the identity and the output at 0, as DiT does and diffusers does not."""
    for block in transformer.transformer_blocks:
        nn.init.zeros_(block.norm1.linear.weight)
        nn.init.zeros_(block.norm1.linear.bias)
    for layer in (transformer.proj_out_1, transformer.proj_out_2):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def predicted(transformer: Any, noisy: Tensor, steps: Tensor) -> Tensor:  # noqa: ANN401
    """The noise that the transformer sees in noisy latents, under the label that stands for none."""
    labels = torch.full_like(steps, transformer.config.num_embeds_ada_norm)
    return cast(Tensor, transformer(noisy, timestep=steps, class_labels=labels).sample)


def mixed(latents: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
    """Latents with noise, as at some timesteps."""
    share = alphas().float()[steps][:, None, None, None]
    return share.sqrt() * latents + (1 - share).sqrt() * noise


def trained_transformer(latents: Tensor, sizes: Sizes) -> Any:  # noqa: ANN401
    """The transformer after training: a mean of its weights over steps."""
    transformer = transformer_of(sizes, latents.shape[-1])
    from_zero(transformer)
    average = transformer_of(sizes, latents.shape[-1])
    average.load_state_dict(transformer.state_dict())
    draws = torch_stream(sizes.seed, "small_dit/transformer/noise")
    optimiser, schedule = optimiser_of(transformer, 1e-3, sizes.steps)
    progress, order = Progress("transformer", sizes.steps), torch.empty(0, dtype=torch.int64)
    transformer.train()
    for step in range(sizes.steps):
        while len(order) < sizes.batch:
            order = torch.cat([order, torch.randperm(len(latents), generator=draws)])
        rows, order = order[: sizes.batch], order[sizes.batch :]
        noise = torch.randn(latents[rows].shape, generator=draws)
        at = torch.randint(NUM_TIMESTEPS, (sizes.batch,), generator=draws)
        loss = F.mse_loss(predicted(transformer, mixed(latents[rows], noise, at), at), noise)
        stepped(optimiser, schedule, loss)
        progress(step, loss.item())
        kept = min(MEAN_DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            for old, new in zip(average.parameters(), transformer.parameters(), strict=True):
                old.lerp_(new, 1 - kept)
    return average.eval()


@torch.no_grad()
def losses_of(transformer: Any, latents: Tensor, seed: int) -> dict[str, float]:  # noqa: ANN401
    """Mean squared error of the predicted noise on held-out latents, by timestep; 1 is that of predicting 0."""
    found = {}
    for timestep in (0, 10, 50, 100, 200, 300, 500, 700, 999):
        noise = torch.randn(latents.shape, generator=torch_stream(seed, "small_dit/held-out", timestep))
        at = torch.full((len(latents),), timestep)
        parts = zip(mixed(latents, noise, at).split(64), at.split(64), noise.split(64), strict=True)
        errors = [F.mse_loss(predicted(transformer, noisy, t), target, reduction="sum") for noisy, t, target in parts]
        found[str(timestep)] = float(sum(errors)) / noise.numel()
    return found


@torch.no_grad()
def sampled(transformer: Any, shape: tuple[int, ...], seed: int, steps: int = 100) -> Tensor:  # noqa: ANN401
    """Latents drawn from noise by the reverse process (DDPM, every so many-th timestep)."""
    scheduler, draws = scheduler_of("DDPMScheduler"), torch_stream(seed, "small_dit/sample")
    scheduler.set_timesteps(steps)
    latents = torch.randn(shape, generator=draws)
    for timestep in scheduler.timesteps:
        noise = predicted(transformer, latents, timestep.expand(len(latents)))
        latents = scheduler.step(noise, timestep, latents, generator=draws).prev_sample
    return latents


def scheduler_of(name: str) -> Any:  # noqa: ANN401
    """A scheduler of diffusers with the noise of ``fedmlic.diffusion.alphas``, latents not cut."""
    settings = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "clip_sample": False}
    return getattr(diffusers, name)(num_train_timesteps=NUM_TIMESTEPS, **settings)


@torch.no_grad()
def look(pipeline: Any, corpus: Corpus, seed: int, target: Path) -> None:  # noqa: ANN401
    """Write held-out pictures, the autoencoder's, those denoised at once from three timesteps, and three rows drawn."""
    vae, transformer = pipeline.vae, pipeline.transformer
    rows = np.asarray(corpus.splits["test"])[:SHOWN]
    latents = latents_of(vae, corpus, rows)
    shown = [pixels_of(corpus, rows)]
    found = [latents]
    for timestep in (100, 300, 500):
        at = torch.full((len(rows),), timestep)
        noise = torch.randn(latents.shape, generator=torch_stream(seed, "small_dit/look", timestep))
        noisy, share = mixed(latents, noise, at), float(alphas()[timestep])
        found.append((noisy - (1 - share) ** 0.5 * predicted(transformer, noisy, at)) / share**0.5)
    found.extend(sampled(transformer, (3 * SHOWN, *latents.shape[1:]), seed).split(SHOWN))
    shown.extend(vae.decode(each / vae.config.scaling_factor).sample for each in found)
    lines = [torch.cat(list(line), dim=2) for line in shown]
    values = ((torch.cat(lines, dim=1).permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    Image.fromarray(values).resize((values.shape[1] * 3, values.shape[0] * 3), Image.Resampling.NEAREST).save(target)


def train(out: Path, sizes: Sizes) -> dict[str, Any]:
    """Train both networks and write the folder.

    Args:
        out: the folder.
        sizes: of networks and training.

    Returns:
        What ``losses.json`` has.
    """
    start, corpus = time.process_time(), corpus_of(sizes)
    vae = trained_vae(corpus, sizes)
    rows, held = (np.asarray(corpus.splits[split]) for split in ("train", "test"))
    with torch.no_grad():
        pixels = pixels_of(corpus, held)
        error = float(F.mse_loss(vae(pixels).sample, pixels))
    report: dict[str, Any] = {"sizes": sizes._asdict(), "vae_mse": error, "vae_pixels_variance": float(pixels.var())}
    print(f"autoencoder: squared error {error:.5f} on held-out pictures, whose variance is {pixels.var():.3f}")
    vae.save_pretrained(out / "vae")
    latents, unseen = latents_of(vae, corpus, rows), latents_of(vae, corpus, held)
    transformer_of(sizes, latents.shape[-1]).save_pretrained(out / "untrained" / "transformer")
    transformer = trained_transformer(latents, sizes)
    pipeline = diffusers.DiTPipeline(transformer=transformer, vae=vae, scheduler=scheduler_of("DDIMScheduler"))
    pipeline.save_pretrained(out)
    report["noise_mse"] = losses_of(transformer, unseen, sizes.seed)
    report["noise_mse_training"] = losses_of(transformer, latents[: len(unseen)], sizes.seed)
    report["parameters"] = {
        name: sum(each.numel() for each in network.parameters())
        for name, network in (("transformer", transformer), ("vae", vae))
    }
    report["processor_seconds"] = time.process_time() - start
    (out / "losses.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    look(pipeline, corpus, sizes.seed, out / "look.png")
    return report


class Place(NamedTuple):
    """What a block at a timestep is worth under one alpha; all from 0 to 1.

    Attributes:
        block: from 0.
        timestep: of the diffusion.
        alpha: penalty of the ridge regressions.
        criterion: the clients' score, all validation pictures as one client's.
        val: mAP of a ridge regression fitted on training pictures, on validation pictures.
        test: likewise, on test pictures.
    """

    block: int
    timestep: int
    alpha: float
    criterion: float
    val: float
    test: float


def features_of(backbone: nn.Module, corpus: Corpus, timestep: int) -> NDArray[np.float64]:
    """float64 ``[images, blocks, features]`` of all pictures, in the corpus' order."""
    diffusion = of_any_block(cast(Any, backbone))
    blocks = range(diffusion.num_blocks)
    rows = np.arange(corpus.num_images)
    with torch.no_grad():
        parts = [
            diffusion.at(to_float(corpus.images.take(rows[at : at + 64])), blocks, timestep)
            for at in range(0, len(rows), 64)
        ]
    return torch.cat(parts).double().numpy()


def place_of(features: NDArray[np.float64], corpus: Corpus, block: int, timestep: int, alpha: float) -> Place:
    """Score one place from its features ``[images, features]``."""
    labels = corpus.labels.take(np.arange(corpus.num_images))
    train, val, test = (slice(each.start, each.stop) for each in (corpus.splits[s] for s in ("train", "val", "test")))
    both = cross_scores(features[val], labels[val], alpha)
    judged = both.positives > 0
    criterion = float((both.precision[judged] / both.positives[judged]).mean())
    found = []
    for judged_on in (val, test):
        scores, _ = dual_ridge(features[train], labels[train], features[judged_on], alpha)
        found.append(float(np.nanmean(average_precisions(scores, labels[judged_on]))))
    return Place(block, timestep, alpha, criterion, *found)


def grid(path: str, vae: str, timesteps: tuple[int, ...]) -> list[Place]:
    """All blocks at some timesteps under all alphas.

    Args:
        path: folder of the transformer, as ``dit`` reads it.
        vae: folder of its autoencoder; empty: in ``path``.
        timesteps: of the grid.
    """
    whole = Path(path) / "transformer"
    depth = json.loads((whole / "config.json").read_text(encoding="utf-8"))["num_layers"]
    backbone = build("model", f"dit(path={path!r}, vae={vae!r}, depth={depth})").build(3).eval()
    corpus = open_corpus(build("dataset", tomllib.loads(STUDY.read_text(encoding="utf-8"))["base"]["dataset"]))
    found = []
    for number, timestep in enumerate(timesteps):
        features = features_of(backbone, corpus, timestep)
        found += [
            place_of(features[:, block], corpus, block, timestep, alpha) for block in range(depth) for alpha in ALPHAS
        ]
        print(f"timestep {timestep}: {number + 1} of {len(timesteps)}", flush=True)
    return found


def chosen_alpha(places: list[Place], depth: int) -> float:
    """The alpha with the best validation mAP where Diff-Feat's search begins."""
    there = [each for each in places if (each.block, each.timestep) == (int(BEGIN[0] * depth), BEGIN[1])]
    return max(there, key=lambda each: each.val).alpha


def show(places: list[Place]) -> None:
    """Print alphas where the search begins, and the grid under the one that is chosen."""
    depth, timesteps = 1 + max(each.block for each in places), sorted({each.timestep for each in places})
    alpha = chosen_alpha(places, depth)
    for each in places:
        if (each.block, each.timestep) == (int(BEGIN[0] * depth), BEGIN[1]):
            print(f"alpha {each.alpha:g}: criterion {each.criterion:.3f}, val {each.val:.3f}, test {each.test:.3f}")
    kept = {(each.block, each.timestep): each for each in places if each.alpha == alpha}
    for name in ("criterion", "val", "test"):
        print(f"\n{name}, alpha {alpha:g}; rows: blocks, columns: timesteps")
        print("   " + "".join(f"{timestep:>7}" for timestep in timesteps))
        for block in range(depth):
            print(f"{block:>3}" + "".join(f"{getattr(kept[block, t], name):7.3f}" for t in timesteps))
    tests = sorted(each.test for each in kept.values())
    best = max(kept.values(), key=lambda each: each.criterion)
    print(f"\ntest mAP of {len(tests)} places: {tests[0]:.3f} to {tests[-1]:.3f}, median {np.median(tests):.3f}")
    print(f"best by the criterion: block {best.block}, timestep {best.timestep}, test mAP {best.test:.3f}")


def main() -> None:
    """Train and print what came of it, or score places."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train both networks and write their folder")
    training.add_argument("out", type=Path, help="the folder to write")
    for name, value in Sizes()._asdict().items():
        if isinstance(value, int):
            training.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    scoring = commands.add_parser("places", help="score every block at some timesteps")
    scoring.add_argument("path", help="the folder, or untrained in it")
    scoring.add_argument("--vae", default="", help="of the autoencoder, where it lies elsewhere")
    scoring.add_argument("--timesteps", type=int, nargs="+", default=TIMESTEPS)
    scoring.add_argument("--out", type=Path, help="a JSON file with every alpha at every place")
    options = vars(parser.parse_args())
    torch.set_num_threads(1)
    if options.pop("command") == "train":
        out = options.pop("out")
        print(json.dumps(train(out, Sizes(**options)), indent=1))
        return
    places = grid(options["path"], options["vae"], tuple(options["timesteps"]))
    show(places)
    if options["out"]:
        options["out"].write_text(json.dumps([each._asdict() for each in places], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
