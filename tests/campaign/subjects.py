"""Every kind of file that is read, with a short computation whose result depends on all of its content.

A subject makes its folder once and has a function that loads it and returns a digest of what it gives: frames that
were imagined, probabilities, actions, arrays, rows.

Example::

    subject = SUBJECTS["policy"]
    subject.make(place, folder)
    subject.use(folder, place)
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .harness import forked, said
from .workspace import COMMANDS, Workspace, command

TRACES = ("*tfevents*", "tensorboard", "checkpoint*")


@dataclass(frozen=True)
class Subject:
    """A kind of folder.

    Args:
        make: writes it into a folder that does not exist, in a child of the parent.
        use: loads it and gives what it holds, JSON-able; refuses with a WorldgymError, or an exit code of a command.
        sealed: the folder carries hashes of our own, so any change of a result is to be noticed.
        needs: inputs of the workspace.
        only: pattern (suffix or name) of the files that are damaged; all when None.
        weight: share of the cases.
        seconds: limit of time of one use.
    """

    make: Callable[[Workspace, Path], Any]
    use: Callable[[Path, Workspace], Any]
    sealed: bool = True
    needs: tuple[str, ...] = ()
    only: tuple[str, ...] | None = None
    weight: int = 4
    seconds: float = 30.0


def digest(*values: Any) -> str:
    """A hash of arrays, tensors and plain values."""
    import numpy as np
    import torch

    total = hashlib.sha256()
    for value in values:
        if isinstance(value, torch.Tensor):
            value = value.detach().numpy()
        if isinstance(value, np.ndarray):
            total.update(f"{value.dtype}{value.shape}".encode())
            total.update(value.tobytes() if value.dtype != object else repr(value.tolist()).encode())
        else:
            total.update(json.dumps(value, sort_keys=True, default=str).encode())
    return total.hexdigest()[:16]


def _copy(name: str) -> Callable[[Workspace, Path], None]:
    def make(place: Workspace, folder: Path) -> None:
        shutil.copytree(place.at(name), folder, ignore=shutil.ignore_patterns(*TRACES))

    return make


def _frames(size: int, count: int = 2) -> Any:
    import torch

    return torch.randint(
        0, 256, (count, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def _world(folder: Path, place: Workspace) -> str:
    import torch

    from worldgym.models import load_world_model

    model = load_world_model(folder)
    size = model.config.tokenizer.image_size
    frames = _frames(size)[:, None]
    generator = torch.Generator().manual_seed(0)
    actions = torch.rand(2, 2, model.action_dim, generator=generator) - 0.5
    states = torch.zeros(2, 1, model.state_dim)
    state = model.begin(frames, torch.zeros(2, 0, model.action_dim), generator, states=states)
    _, seen = model.step(state, actions)
    return digest(seen.frames, seen.states)


def _judge(folder: Path, place: Workspace) -> str:
    from rewards import load_judge

    judge = load_judge(folder)
    states = {}
    if judge.reads.state:
        import torch

        states = {"states": torch.zeros(2, 4)}
    verdict = judge.score(_frames(64)[:, None], ["push the cube", "reach the ball"], **states)
    return digest(verdict.p_success, verdict.valid, judge.threshold)


def _latent(folder: Path, place: Workspace) -> str:
    import torch

    from rewards import load_judge
    from worldgym.models import load_world_model

    judge = load_judge(folder, tokenizer=load_world_model(place.at("world")).tokenizer)
    states = {"states": torch.zeros(2, 4)} if judge.reads.state else {}
    verdict = judge.score(_frames(64)[:, None], ["push the cube", "reach the ball"], **states)
    return digest(verdict.p_success, verdict.valid, judge.threshold)


def _policy(folder: Path, place: Workspace) -> str:
    import torch

    from agents import VLAPolicy

    policy = VLAPolicy.from_pretrained(folder)
    size = policy.config.image_size
    seen = {
        "image": _frames(size),
        "state": torch.zeros(2, 4),
        "instruction": ["push the cube", "reach the ball"],
    }
    said = policy.act(seen, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    return digest(said.actions, said.log_prob)


def _probe(folder: Path, place: Workspace) -> str:
    from worldgym.models.probe import PositionProbe

    found = PositionProbe.from_pretrained(folder).locate(_frames(64))
    return digest(*found)


def _archives(place: Workspace, folder: Path) -> None:
    whole = place.at("whole")
    for name in ("world_model", "judge", "policy_sft"):
        shutil.copytree(whole / name, folder / name)
    for path in whole.iterdir():
        if path.is_file():
            shutil.copy(path, folder)


def _bundle(folder: Path, place: Workspace) -> str:
    from experiments.bundle import Bundle

    bundle = Bundle.find(folder)
    bank, demos = bundle.start_bank().starts, bundle.demonstrations()
    arrays = (*vars(bank).values(), *vars(demos).values())
    return digest(bundle.card, *arrays)


def _state_parts() -> tuple[Any, Any]:
    import torch

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 2))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        module(torch.ones(3, 6)).square().mean().backward()
        optimizer.step()
    return module, optimizer


def _make_state(place: Workspace, folder: Path) -> None:
    import torch

    from worldgym.utils.train_state import TrainState

    module, optimizer = _state_parts()
    TrainState(folder, {"lr": 1e-2}).save(
        module, optimizer, {"epoch": 2, "best": 0.25}, best={"a": torch.ones(3)}
    )


def _state(folder: Path, place: Workspace) -> str:
    from worldgym.utils.train_state import TrainState

    module, optimizer = _state_parts()
    state = TrainState(folder, {"lr": 1e-2})
    if not state.exists():
        return "fresh"
    meta = state.load(module, optimizer)
    moments = [value for slots in optimizer.state_dict()["state"].values() for value in slots.values()]
    groups = optimizer.state_dict()["param_groups"]
    return digest(meta, *module.state_dict().values(), *moments, groups, *state.load_extra("best").values())


def _loop_of(folder: Path) -> Any:
    from worldgym.training.loop import LoopConfig, TrainingLoop

    module, _ = _state_parts()

    def loss(model: Any, step: int, generator: Any) -> Any:
        import torch

        return model(torch.randn(4, 6, generator=generator)).square().mean(), {}

    return TrainingLoop(module, LoopConfig(steps=3, warmup=1), folder, loss)


def _make_loop(place: Workspace, folder: Path) -> None:
    _loop_of(folder).run()
    for path in folder.glob("*tfevents*"):
        path.unlink()


def _loop(folder: Path, place: Workspace) -> str:
    loop = _loop_of(folder)
    moments = [
        s for o in loop.optimizers for slots in o.state_dict()["state"].values() for s in slots.values()
    ]
    return digest(
        loop.step, *loop.model.state_dict().values(), *loop.ema_model.state_dict().values(), *moments
    )


def _make_run(place: Workspace, folder: Path) -> None:
    """A practice that was killed after its second round."""
    from . import deaths

    folder.mkdir(parents=True)

    def work(at: int | None) -> Any:
        os.chdir(folder)
        seen = deaths.watch(folder, at)
        return {"changes": seen.count} if command(COMMANDS["rl"].line(place)) == 0 else 1

    log = folder.with_suffix(".log")
    ended = forked(lambda: work(None), log=log)
    if not isinstance(ended.value, dict):
        raise SystemExit(f"the run can't be made: {said(log)}")
    shutil.rmtree(folder / "out")
    forked(lambda: work(int(ended.value["changes"] * 0.75)), log=log)


def _run(folder: Path, place: Workspace) -> Any:
    from .compare import facts

    os.chdir(folder)
    code = command(COMMANDS["rl"].line(place))
    return code if code else digest({k: v for k, v in facts(folder).items() if "tensorboard" not in k})


def _make_records(place: Workspace, folder: Path) -> None:
    from experiments.claims.records import Records

    records = Records(folder, "tiny")
    for arm, rate in (("sft", "010101"), ("bc_only", "111000")):
        row = {"success": rate, "progress": [1.0] * 6, "steps": 100}
        head = {
            "label": arm, "settings": {"a": 1}, "hashes": {"world_model": "x"}, "versions": {"worldgym": "0"},
            "tasks": ["reach", "push"], "budget": {"updates": 1.0, "wall_seconds": 2.0},
            "way": [{"round": 1.0, "steps": 10.0, "true": 0.5, "imagined": 0.5, "seconds": 1.0}],
            "evaluations": {"seen/greedy": row, "seen/sampled": row},
        }  # fmt: skip
        records.write("C1", arm, 0, head)


def _records(folder: Path, place: Workspace) -> str:
    from experiments.claims.records import Records

    records = Records(folder, "tiny")
    rows = [records.read("C1", arm, 0) for arm in ("sft", "bc_only")]
    return digest(rows, *[records.outcomes("C1", arm, "seen/greedy", [0]) for arm in ("sft", "bc_only")])


def _sweep_config(place: Workspace, folder: Path, resume: bool) -> Any:
    from experiments.commands.sweep import SweepConfig

    space = () if resume else ("lr=1e-5,2e-5", "group=4,8")
    return SweepConfig(
        space=space, out=folder, bundle=None if resume else str(place.at("bundle")), resume=resume
    )


def _make_sweep(place: Workspace, folder: Path) -> None:
    from experiments.commands.sweep import SETTINGS, plain_settings, whole_settings
    from worldgym.utils.files import write_sealed

    write_sealed(folder / SETTINGS, plain_settings(whole_settings(_sweep_config(place, folder, False))))


def _sweep(folder: Path, place: Workspace) -> str:
    from experiments.commands.sweep import whole_settings

    return digest(asdict(whole_settings(_sweep_config(place, folder, True))))


def _dataset(folder: Path, place: Workspace) -> str:
    from worldgym.data import EpisodeDataset

    data = EpisodeDataset(folder)
    rows = []
    for episode in data:
        rows.append(digest(*[getattr(episode, name) for name in vars(episode)]))
    arrays = data.load_arrays()
    return digest(rows, *vars(arrays).values())


def _import(folder: Path, place: Workspace) -> Any:
    out = folder.with_name(folder.name + "-imported")
    shutil.rmtree(out, ignore_errors=True)
    try:
        code = command(["import", "--source", str(folder), "--out", str(out), "--image-size", "32"])
        return code if code else _dataset(out, place)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _tokenizer(folder: Path, place: Workspace) -> str:
    from experiments.commands.train_judge import load_tokenizer

    return digest(load_tokenizer(None, folder).encode(_frames(64)))  # type: ignore[union-attr]


def _make_http(place: Workspace, folder: Path) -> None:
    from rewards.models.http import HttpJudge, HttpJudgeConfig

    HttpJudge(HttpJudgeConfig(url="http://127.0.0.1:9/v1", model="m")).save_pretrained(folder)


def _http(folder: Path, place: Workspace) -> str:
    from rewards.models.http import HttpJudge

    return repr(HttpJudge.from_pretrained(folder))


def _cached(folder: Path) -> Any:
    from rewards.models.http import HttpJudge, HttpJudgeConfig

    return HttpJudge(HttpJudgeConfig(url="http://127.0.0.1:9/v1", model="m"), cache=folder)


def _make_cache(place: Workspace, folder: Path) -> None:
    from rewards.models.http import _Answer

    for number, score in enumerate((0.0, 1.0, 0.5)):
        _cached(folder)._keep(f"{number:064x}", _Answer([f"Final Score: {score}"], [score]))


def _cache(folder: Path, place: Workspace) -> str:
    """An answer that can't be read is asked for again: that is no change of a result."""
    judge, wanted = _cached(folder), [[0.0], [1.0], [0.5]]
    for number, scores in enumerate(wanted):
        kept = judge._kept(f"{number:064x}")
        if kept is not None and (kept.scores != scores or kept.texts != [f"Final Score: {scores[0]}"]):
            return f"another answer: {kept.scores}"
    return "kept or asked again"


def _make_calibrated(place: Workspace, folder: Path) -> None:
    import numpy as np

    from rewards import load_judge
    from rewards.wrappers.calibrated import CalibratedJudge, Calibration

    p = np.linspace(0.05, 0.95, 20)
    fitted = Calibration.fit(p, (np.arange(20) % 3 > 0) & (p > 0.3))
    CalibratedJudge(load_judge(place.at("judge")), fitted).save_pretrained(folder)


ARCHIVES = ("card.json", "starts.npz", "demos.npz", "manifest.json")
TOKENIZER = ("tokenizer.safetensors", "tokenizer.json", "manifest.json")

SUBJECTS: dict[str, Subject] = {
    "world_model": Subject(_copy("world"), _world, needs=("world",)),
    "judge": Subject(_copy("judge"), _judge, needs=("judge",)),
    "judge_latent": Subject(_copy("latent"), _latent, needs=("latent",)),
    "judge_calibrated": Subject(_make_calibrated, _judge, needs=("judge",), weight=2),
    "policy": Subject(_copy("policy"), _policy, needs=("policy",)),
    "probe": Subject(_copy("probe"), _probe, needs=("probe",), weight=3),
    "bundle": Subject(_archives, _bundle, needs=("whole",), only=ARCHIVES),
    "train_state": Subject(_make_state, _state),
    "training_loop": Subject(_make_loop, _loop),
    "run_folder": Subject(_make_run, _run, needs=("bundle",), weight=1, seconds=90),
    "claim_records": Subject(_make_records, _records, weight=3),
    "sweep": Subject(_make_sweep, _sweep, needs=("bundle",), weight=2),
    "dataset": Subject(_copy("data"), _dataset, needs=("data",)),
    "imported": Subject(_copy("imported"), _dataset, needs=("imported",), weight=2),
    "lerobot_v2": Subject(_copy("lerobot"), _import, sealed=False, needs=("lerobot",)),
    "lerobot_v3": Subject(_copy("lerobot3"), _import, sealed=False, needs=("lerobot3",)),
    "bridge": Subject(_copy("bridge"), _import, sealed=False, needs=("bridge",), weight=2),
    "tokenizer": Subject(_copy("tokenizer"), _tokenizer, needs=("tokenizer",), only=TOKENIZER, weight=3),
    "http_judge": Subject(_make_http, _http, weight=2),
    "http_cache": Subject(_make_cache, _cache, weight=2),
}  # fmt: skip
