"""The commands of `worldgym`: their modules, and the groups in which the list of commands shows them.

A command is a module of `experiments.commands` with a frozen dataclass config and `run(config) -> int`.

Example::

    COMMANDS[("bench", "speed")].module     # "bench_speed"
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Command:
    """A command: its `module` in experiments.commands, the name of its config class, and one line of help.

    Args:
        draws: the command renders, so the GL library is checked first.
        resumes: the same command, typed again, continues an interrupted run.
        run: name of the function that runs it.
    """

    module: str
    config: str
    help: str
    draws: bool = False
    resumes: bool = False
    run: str = "run"


COMMANDS: dict[tuple[str, ...], Command] = {
    ("info",): Command(
        "info", "InfoConfig", "show versions, devices, OpenGL backend, bundled checkpoints, shadowed packages"
    ),
    ("list",): Command("list", "ListConfig", "list the registered types of parts, and the package of each"),
    ("demo",): Command(
        "demo",
        "DemoConfig",
        "fine-tune the bundled policy in imagination, evaluate it in Real, write a report",
        draws=True,
        resumes=True,
    ),
    ("rl",): Command(
        "rl",
        "RlConfig",
        "fine-tune a policy by RL in imagination, in this process or on Ray workers",
        resumes=True,
    ),
    ("sweep",): Command("sweep", "SweepConfig", "run `rl` with many settings on Ray Tune"),
    ("collect",): Command(
        "collect", "CollectConfig", "record episodes of a suite as a dataset", draws=True, resumes=True
    ),
    ("import",): Command(
        "import_data",
        "ImportConfig",
        "convert recordings (LeRobot, BridgeData V2, video folders) to a dataset",
        resumes=True,
    ),
    ("data", "check"): Command(
        "data_check", "DataCheckConfig", "read a dataset completely and list every problem"
    ),
    ("train", "tokenizer"): Command(
        "train_tokenizer",
        "TrainTokenizerConfig",
        "train the image autoencoder of a world model",
        resumes=True,
    ),
    ("train", "world-model"): Command(
        "train_world_model", "TrainWorldModelConfig", "train the video world model", resumes=True
    ),
    ("train", "wam"): Command(
        "train_wam", "TrainWamConfig", "train a joint world-action model: world model and policy in one", resumes=True
    ),
    ("train", "judge"): Command(
        "train_judge", "TrainJudgeConfig", "train a success judge on logged episodes", resumes=True
    ),
    ("audit",): Command(
        "audit",
        "AuditConfig",
        "compare judges on the same imagined episodes, which are then executed in Real",
        draws=True,
    ),
    ("calibrate",): Command(
        "calibrate", "CalibrateConfig", "find a judge's success threshold for each task", draws=True
    ),
    ("train", "policy"): Command(
        "train_policy", "TrainPolicyConfig", "train a policy on demonstrations (SFT)", resumes=True
    ),
    ("train", "probe"): Command(
        "train_probe",
        "TrainProbeConfig",
        "train the probe that measures positions in frames",
        draws=True,
        resumes=True,
    ),
    ("bundle",): Command("bundle", "BundleConfig", "copy trained parts into one checkpoint folder"),
    ("card",): Command("card", "CardConfig", "write the model card of a bundle, with its gate"),
    ("coevolve",): Command(
        "coevolve",
        "CoevolveConfig",
        "improve policy, world model and judge in rounds of episodes in Real and practice in imagination",
        draws=True,
        resumes=True,
    ),
    ("build",): Command(
        "build", "BuildConfig", "make a bundle from nothing, by the commands of a recipe", resumes=True
    ),
    ("picture",): Command(
        "picture", "PictureConfig", "draw recorded frames above predicted ones", draws=True
    ),
    ("eval",): Command(
        "evaluate",
        "EvalConfig",
        "measure success rates of policies on the same starts, with intervals",
        draws=True,
    ),
    ("serve", "policy"): Command(
        "serve",
        "ServePolicyConfig",
        "serve a policy to openpi clients and to RemotePolicy",
        run="serve_policy",
    ),
    ("serve", "world-model"): Command(
        "serve", "ServeWorldModelConfig", "serve a world model to RemoteWorldModel", run="serve_world_model"
    ),
    ("cost",): Command(
        "cost", "CostConfig", "parameters, memory and operations of models and policies, from their shapes"
    ),
    ("claims", "list"): Command(
        "claims",
        "ClaimsListConfig",
        "list published claims, and the rule that refutes each",
        run="list_claims",
    ),
    ("claims", "run"): Command(
        "claims", "ClaimsRunConfig", "run the unfinished arms of claims", draws=True, resumes=True
    ),
    ("claims", "report"): Command(
        "claims", "ClaimsReportConfig", "write verdicts and pages from the results", run="report"
    ),
    ("bench", "closed-loop"): Command(
        "bench_closed_loop",
        "BenchClosedLoopConfig",
        "execute imagined episodes in Real: precision and recall of imagined success",
        draws=True,
    ),
    ("bench", "env"): Command(
        "bench_env", "BenchEnvConfig", "cost of the Gymnasium interface on top of the world model"
    ),
    ("bench", "speed"): Command(
        "bench_speed",
        "BenchSpeedConfig",
        "time of an imagined frame, beside the simulator and sampling without a cache",
        draws=True,
    ),
    ("bench", "gpu"): Command(
        "gpu_check", "GpuCheckConfig", "speed and memory of imagining, training and GRPO on one GPU"
    ),
    ("bench", "surprise"): Command(
        "bench_surprise", "BenchSurpriseConfig", "does the error of the predicted frames predict failure in Real",
        draws=True,
    ),
    ("bench", "latency"): Command(
        "bench_latency", "BenchLatencyConfig", "time of a chunk and success, for policies and for faster samplers",
        draws=True,
    ),
    ("bench", "hacking"): Command(
        "bench_hacking",
        "BenchHackingConfig",
        "train policies long against each judge: which judges are exploited",
        draws=True,
        resumes=True,
    ),
    ("bench", "gap"): Command(
        "bench_gap", "BenchGapConfig", "how wrong the misspecified simulator is at each domain gap"
    ),
    ("bench", "best-of"): Command(
        "bench_best_of",
        "BenchBestOfConfig",
        "execute the best of N imagined attempts, chosen by each judge, in Real",
        draws=True,
    ),
    ("bench", "optimism"): Command(
        "bench_optimism",
        "BenchOptimismConfig",
        "how often imagination shows success for actions that fail in Real",
        draws=True,
    ),
    ("bench", "embodiments"): Command(
        "bench_embodiments",
        "BenchEmbodimentsConfig",
        "a world model of several robots, beside one of each, at equal steps",
        resumes=True,
    ),
    ("bench", "hindsight"): Command(
        "bench_hindsight",
        "BenchHindsightConfig",
        "how often the judge is right that a failed attempt fulfils another instruction",
        draws=True,
    ),
    ("bench", "video"): Command(
        "bench_video",
        "BenchVideoConfig",
        "train the world model on recorded robot video, one episode left out",
        resumes=True,
    ),
    ("bench", "fidelity"): Command(
        "bench_fidelity",
        "BenchFidelityConfig",
        "accuracy of imagined episodes: positions by horizon, verdicts, rankings",
        draws=True,
    ),
}


GROUPS = {
    "start": ("info", "list", "demo"),
    "record and import": ("collect", "import", "data"),
    "train": ("train", "bundle", "card", "build"),
    "reinforcement learning": ("rl", "sweep", "coevolve"),
    "judge": ("audit", "calibrate"),
    "evaluate": ("eval", "picture", "bench", "cost"),
    "use from other processes and machines": ("serve",),
    "published claims": ("claims",),
}
"""Headings of the list of commands, and the first words of the commands in each group."""
