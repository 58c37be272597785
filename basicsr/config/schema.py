"""The options as typed, frozen objects: which keys there are, of what type, and what they mean.

Sections are pydantic models: strict types, no unknown keys, nothing assignable. Blocks that name a component
by `type` (networks, losses, methods, metrics, optimizers, schedulers, datasets) are `FrozenMapping`s, whose
keys are held against the component's constructor.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from basicsr.config.component_blocks import (
    EMPTY,
    Component,
    DiscriminatorBlock,
    FrozenMapping,
    LossBlock,
    MethodBlock,
    MetricBlock,
    Named,
    NetworkBlock,
    OptimizerBlock,
    SchedulerBlock,
    Section,
)
from basicsr.config.quantization import QuantizationSettings
from basicsr.utils.ranges import (
    LARGEST_ITERATION,
    BatchSize,
    BelowOne,
    Border,
    Few,
    FewOrNone,
    ImageChannels,
    Interval,
    Iterations,
    IterationsOrNone,
    Position,
    PositiveWeight,
    Scale,
    Side,
    WeightDecay,
)
from basicsr.utils.registry import (
    DATASET_REGISTRY,
    Key,
    Problem,
    find_problems,
    raise_problems,
    unknown_key,
)
from basicsr.utils.registry import thaw as thaw
from basicsr.utils.text import nearest

MODEL_TYPES = {  # BasicSR's and other names: ours
    "KDModel": "KDModel",
    "MCADKD": "KDModel",
    "MCADKDModel": "KDModel",
    "SRModel": "SRModel",
    "SwinIRModel": "SRModel",
    "SRGANModel": "SRModel",
    "RealESRNetModel": "SRModel",
    "RealESRGANModel": "SRModel",
}


def _model_type(value: Any) -> Any:
    if not isinstance(value, str) or value in MODEL_TYPES:
        return MODEL_TYPES.get(value, value) if isinstance(value, str) else value
    raise ValueError(f"no model is called '{value}'{nearest(value, MODEL_TYPES)}; there are: {', '.join(MODEL_TYPES)}")


_ABSENT: Any = None
Pattern = Annotated[str, Field(min_length=1, max_length=200)]
Rate = Annotated[float, Field(gt=0, le=100)]
Precision = Literal["none", "bf16", "fp16"]
TrainingPrecision = Literal["auto", "none", "bf16", "fp16"]


class _Dataset(Component):
    """A whole entry of `datasets`: the keys that are not the loader's are arguments of the dataset's class."""

    def problems_with(self, member: Any, given: Mapping[str, Any]) -> list[Problem]:
        """See `Component`."""
        filled = {key: given.get(key) for key in _FILLED_IN}
        arguments = {key: value for key, value in given.items() if key not in _FILLED_IN}
        return find_problems(member, arguments, filled, further=dict.fromkeys(DatasetOptions.loader_keys(), Any))

    def kept(self, block: Mapping[str, Any]) -> FrozenMapping:
        """See `Component`."""
        known = ("type", *_FILLED_IN, *DatasetOptions.loader_keys())
        return FrozenMapping({key: block[key] for key in block if key not in known})


_FILLED_IN = ("phase", "scale")


class DatasetOptions(Section):
    """One entry of `datasets`: what the loader needs, and in `arguments` what the dataset's class takes."""

    type: str = Field(description="class of the dataset, such as PairedImageDataset")
    name: str = Field(min_length=1, description="name in logs, tables and result folders")
    phase: Literal["train", "val", "test"] = Field(exclude=True, description="filled in from the entry's key")
    scale: Scale = Field(exclude=True, description="filled in from the top-level scale")
    batch_size_per_gpu: BatchSize = Field(default=1, description="images per iteration and process")
    num_worker_per_gpu: FewOrNone = Field(default=0, description="loader processes per training process")
    dataset_enlarge_ratio: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=1, description="passes over the images that count as one epoch in the log"
    )
    prefetch_mode: Literal["cpu", "cuda"] | None = Field(default=None, description="accepted and ignored (BasicSR)")
    num_prefetch_queue: Few = Field(default=1, description="batches that each worker prepares ahead")
    pin_memory: bool = Field(default=True, description="page-locked batches, for faster copies to the GPU")
    persistent_workers: bool = Field(default=True, description="workers live through the whole run")
    use_shuffle: bool = Field(default=True, description="whether training sees the images in random order")
    check_images: Literal["none", "headers", "full"] = Field(
        default="headers", description="how every image is checked before a run; full decodes it"
    )
    skip_bad_images: IterationsOrNone = Field(
        default=0, description="in training: how many unusable images may be skipped; 0 stops at the first"
    )
    gt_sizes: Annotated[tuple[Side, ...], Field(min_length=1)] | None = Field(
        default=None, description="progressive training: side of the HR patches, stage by stage; gt_size is the largest"
    )
    mini_batch_sizes: Annotated[tuple[BatchSize, ...], Field(min_length=1)] | None = Field(
        default=None, description="of each stage: images to a batch of one process; batch_size_per_gpu is the first"
    )
    iters: Annotated[tuple[Iterations, ...], Field(min_length=1)] | None = Field(
        default=None, description="of each stage: iterations; together at least train: total_iter"
    )
    share: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="of several training sets: share of the iterations that this one has; ~: by the numbers of images",
    )
    arguments: Annotated[Mapping[str, Any], _Dataset("dataset", DATASET_REGISTRY)] = Field(
        description="keys for the dataset's own class (written beside the others)"
    )

    @classmethod
    def loader_keys(cls) -> list[str]:
        """The keys that users may write for any class."""
        return [name for name in cls.model_fields if name not in ("type", *_FILLED_IN, "arguments")]

    @classmethod
    def gathered(cls, data: dict[str, Any]) -> dict[str, Any]:
        """See `Section`; whether `type` is one is looked at with the arguments."""
        if "arguments" in data:
            raise_problems([unknown_key(("arguments",), cls.loader_keys())])
        own = {key: value for key, value in data.items() if key in cls.model_fields}
        return {**own, "type": str(data.get("type")), "arguments": data}

    def to_data(self) -> dict[str, Any]:
        """As it was written: the class's arguments beside the loader's keys."""
        data = super().to_data()
        arguments = data.pop("arguments")
        return {**data, **arguments}


_OF_ONE_SET = ("name", "share")
OF_ALL_TRAINING_SETS = tuple(name for name in DatasetOptions.loader_keys() if name not in _OF_ONE_SET)
"""Keys of `datasets: train` that hold for further training sets, too."""


class PathOptions(Section):
    """`path`: pretrained weights, what to resume, where results go."""

    pretrain_network_g: str | None = Field(default=None, description="weights that the network starts from")
    pretrain_network_t: str | None = Field(default=None, description="the teacher's weights")
    pretrain_network_d: str | None = Field(default=None, description="weights that the discriminator starts from")
    strict_load_g: bool = Field(default=True, description="refuse weights whose names differ from the network's")
    strict_load_t: bool = Field(default=True, description="likewise for the teacher")
    strict_load_d: bool = Field(default=True, description="likewise for the discriminator")
    param_key_g: str | None = Field(default="params", description="key of the weights in the file; ~ if it is flat")
    param_key_t: str | None = Field(default="params", description="likewise for the teacher")
    param_key_d: str | None = Field(default="params", description="likewise for the discriminator")
    resume_state: str | None = Field(default=None, description="training state to continue from")
    ignore_resume_networks: tuple[Literal["network_g", "network_d"], ...] = Field(
        default=(), description="networks that keep their pretrain_ path when a run is resumed"
    )
    allow_random_teacher: bool = Field(default=False, description="train without the teacher's weights (for tests)")
    experiments_root: str | None = Field(default=None, description="folder of all experiments; default: experiments")
    results_root: str | None = Field(default=None, description="folder of all test results; default: results")


class ParameterGroup(Section):
    """One entry of `train.param_groups`: a part that learns at its own rate or with its own weight decay."""

    params: Pattern | Annotated[tuple[Pattern, ...], Field(min_length=1)] = Field(
        description="patterns of modules' and parameters' names, such as body.* or, for terms, distill.contrastive.*"
    )
    lr: Rate | None = Field(default=None, description="learning rate that the schedule starts from; ~: as the others")
    weight_decay: WeightDecay | None = Field(default=None, description="weight decay; ~: as the others")

    @property
    def patterns(self) -> tuple[str, ...]:
        """`params` as a tuple."""
        return (self.params,) if isinstance(self.params, str) else self.params

    @property
    def settings(self) -> dict[str, float]:
        """What is given of `lr` and `weight_decay`."""
        return {key: value for key in ("lr", "weight_decay") if (value := getattr(self, key)) is not None}


class TrainOptions(Section):
    """`train`: losses, distillation terms, optimizers and schedule."""

    older_names = ("gan_opt", "resp_kd_opt", "contrastive_opt")
    total_iter: Iterations = Field(description="iterations in all")
    warmup_iter: Annotated[int, Field(ge=-1, le=LARGEST_ITERATION)] = Field(
        default=-1, description="iterations of rising learning rate; -1 for none"
    )
    ema_decay: BelowOne = Field(default=0.0, description="decay of the averaged weights; 0 for none")
    accumulate: Few = Field(default=1, description="batches whose gradients are averaged in one iteration")
    grad_clip: PositiveWeight | None = Field(default=None, description="largest gradient norm; ~ for no limit")
    optim_g: OptimizerBlock = Field(description="optimizer of the trained network (and of the terms' heads)")
    weight_decay_heads: WeightDecay = Field(default=0.0, description="weight decay of terms' heads and temperatures")
    lr_heads: Rate | None = Field(
        default=None, description="learning rate of terms' heads and temperatures; ~: that of optim_g"
    )
    param_groups: tuple[ParameterGroup, ...] = Field(
        default=(), description="parts that learn at rates of their own; the first entry that means a parameter holds"
    )
    freeze: tuple[Pattern, ...] = Field(
        default=(), description="patterns of modules' and parameters' names in network_g that are not trained"
    )
    freeze_until: Iterations | None = Field(
        default=None, description="last iteration in which they are frozen; ~: all of the training"
    )
    quantize: QuantizationSettings | None = Field(
        default=None,
        description="train the network of path: pretrain_network_g on with fake quantisation; ~: in float",
    )
    optim_d: OptimizerBlock | None = Field(default=None, description="optimizer of the discriminator")
    scheduler: SchedulerBlock | None = Field(default=None, description="learning rates; ~ for a constant rate")
    pixel_opt: LossBlock | None = Field(default=None, description="loss between output and HR image")
    perceptual_opt: LossBlock | None = Field(default=None, description="perceptual loss between output and HR image")
    adversarial_opt: LossBlock | None = Field(default=None, description="GAN loss (gan_opt in BasicSR's files)")
    distill: Named[MethodBlock] = Field(default=EMPTY, description="distillation terms, by a name of your choice")
    train_adversary: bool = Field(default=True, description="whether the discriminator learns")
    net_d_iters: Iterations = Field(default=1, description="the network is updated every so many iterations")
    net_d_init_iters: IterationsOrNone = Field(default=0, description="iterations that train the discriminator only")

    @property
    def loss_blocks(self) -> dict[str, Mapping[str, Any]]:
        """The losses against the HR image by name, as `LOSS_REGISTRY.build` takes them."""
        blocks = {"pix": self.pixel_opt, "percep": self.perceptual_opt}
        return {name: block for name, block in blocks.items() if block is not None}


class BestOptions(Section):
    """`val.best`: which result decides which checkpoint is kept as the best."""

    dataset: str = Field(description="name of a validation dataset")
    metric: str = Field(description="name of one of val.metrics")


class ValOptions(Section):
    """`val`: when to evaluate, by which metrics, and what to keep."""

    val_freq: Interval = Field(default=5000, description="iterations between evaluations")
    save_img: bool | None = Field(
        default=None, description="save output images; where left out, only test.py does, if its report shows any"
    )
    suffix: str | None = Field(default=None, description="ends the saved images' names; ~ for the experiment's name")
    pbar: bool = Field(default=False, description="show progress")
    self_ensemble: bool = Field(default=False, description="average over the eight flips and rotations (x8)")
    tile: Annotated[int, Field(ge=16, le=16384)] | None = Field(
        default=None, description="side of the tiles that images are cut into, LR pixels; ~ runs them whole"
    )
    tile_overlap: Border | None = Field(
        default=None, description="LR pixels around a tile that the network sees, too; ~: what it needs"
    )
    amp: Precision = Field(
        default="none", description="the networks' precision; tables say where it is not none (float32)"
    )
    metrics: Named[MetricBlock] = Field(
        default=EMPTY, description="metrics by a name of your choice; `better: higher|lower` overrules their own"
    )
    best: BestOptions | None = Field(
        default=None, description="which weights are net_g_best.pth; ~: the first dataset and metric"
    )
    patience: Iterations | None = Field(
        default=None, description="validations without a better figure of `best` after which training ends; ~ for none"
    )
    min_delta: Annotated[float, Field(ge=0, le=1e6)] = Field(
        default=0.0, description="by how much a figure must be better to count for `patience`"
    )


class WandbOptions(Section):
    """`logger.wandb`, as BasicSR's files have it."""

    project: str | None = Field(default=None, description="project at Weights & Biases; ~ does not log there")
    resume_id: str | None = Field(default=None, description="id of the run to go on with; ~ finds or makes one")
    mode: Literal["online", "offline"] = Field(default="online", description="offline keeps the run on disk")


class LoggerOptions(Section):
    """`logger`: how often to log and save."""

    print_freq: Interval = Field(default=100, description="iterations between lines in the log")
    save_checkpoint_freq: Interval = Field(default=5000, description="iterations between checkpoints")
    use_tb_logger: bool = Field(default=False, description="write TensorBoard files")
    keep_checkpoints: Annotated[int, Field(ge=2, le=LARGEST_ITERATION)] | None = Field(
        default=None, description="how many of the newest checkpoints to keep, at least 2; ~ keeps all"
    )
    wandb: WandbOptions | None = Field(default=None, description="log to Weights & Biases")


class DistOptions(Section):
    """`dist_params`: how the processes of a distributed run talk."""

    backend: Literal["nccl", "gloo"] = Field(default="nccl", description="gloo is taken where there is no GPU")
    port: Annotated[int, Field(ge=1, le=65535)] | None = Field(default=None, description="port, for slurm")
    timeout: Annotated[float, Field(ge=5, le=86400)] = Field(
        default=60.0, description="seconds without a sign of life from a rank, after which the others end"
    )
    join_timeout: Annotated[float, Field(ge=5, le=86400)] = Field(
        default=120.0, description="seconds that ranks wait for each other at the start"
    )


class Region(Section):
    """One entry of `report: regions`: a square of an HR image to look at."""

    dataset: str = Field(description="name of a dataset")
    image: str = Field(description="name of the image, as in metrics.csv")
    x: Position = Field(description="left edge, HR pixels")
    y: Position = Field(description="upper edge, HR pixels")
    size: Annotated[int, Field(ge=8, le=16384)] = Field(default=48, description="side, HR pixels")


Published = Literal[
    "EDSR",
    "EDSR ablations",
    "EDSR c64b16",
    "RCAN",
    "RCAN ablations",
    "RCAN c32b5g5 ablations",
    "SwinIR",
    "SwinIR ablations",
    "SwinIR-light",
    "NAFNet",
    "Restormer",
    "MT-RNN",
    "DMPHN",
    "MPRNet",
    "SPAIR",
]
"""What config/published.csv has figures of."""


class ReportOptions(Section):
    """`report`: what test.py makes of its figures, beside metrics.csv and summary.md."""

    html: bool = Field(default=True, description="write report.html, one file that opens without a network")
    images: IterationsOrNone = Field(
        default=20, description="images of each dataset and scale in report.html: those that differ most"
    )
    plots: bool = Field(default=True, description="draw PSNR against cost, and the visual comparison")
    crops: FewOrNone = Field(default=4, description="rows of the visual comparison of each scale")
    regions: tuple[Region, ...] = Field(
        default=(), description="rows of the visual comparison; where left out, where the networks differ most"
    )
    published: Published | None = Field(default=None, description="backbone whose published figures stand beside ours")
    speed: bool = Field(default=True, description="measure how fast the networks run, for Table 2")
    input: tuple[ImageChannels, Side, Side] = Field(
        default=(3, 256, 256), description="channels, height and width of the input that Table 2 is about"
    )


class RowOptions(Section):
    """One entry of `networks`: a row of the test table."""

    type: Literal["bicubic"] | None = Field(default=None, description="bicubic: upscale without a network")
    network: NetworkBlock | None = Field(
        default=None, description="the network; ~: network_g, or recognised from the file, as by {type: auto}"
    )
    path: str | None = Field(default=None, description="its weights")
    param_key: str | None = Field(default="params", description="key of the weights in the file; ~ if it is flat")
    strict: bool = Field(default=True, description="refuse weights whose names differ from the network's")

    def to_data(self) -> dict[str, Any]:
        """As it was written: a bicubic row has no other keys."""
        return {"type": "bicubic"} if self.type == "bicubic" else super().to_data()


class FurtherTeacher(Section):
    """An entry of `SeveralTeachers`' option `teachers`."""

    network: NetworkBlock | None = Field(default=None, description="the network; recognised from its file if left out")
    path: str | None = Field(default=None, description="file with its weights")
    param_key: str | None = Field(default="params", description="key of the weights in the file; ~ if it is flat")
    strict: bool = Field(default=True, description="refuse weights whose names differ from the network's")
    weight: PositiveWeight = Field(default=1.0, description="its weight in the mean")
    allow_random: bool = Field(default=False, description="train without its weights where path is ~ (for tests)")


class Options(Section):
    """A whole options file."""

    older_names = ("discriminator",)
    name: str = Field(description="the experiment's name and the name of its folder")
    model_type: Annotated[Literal["KDModel", "SRModel"], BeforeValidator(_model_type)] = Field(
        default="SRModel",
        description="KDModel (MCADKD, MCADKDModel) trains a student with a teacher; SRModel (SwinIRModel,"
        " SRGANModel, RealESRNetModel, RealESRGANModel) trains a network",
        json_schema_extra={"enum": list(MODEL_TYPES)},
    )
    scale: Scale = Field(
        description="upscaling factor, also put in the place of {scale} in any value; for test.py also a list"
    )
    num_gpu: FewOrNone | Literal["auto"] = Field(
        default="auto",
        description="0: the CPU; auto: a GPU for each process where there are GPUs; n: likewise, and a line in the"
        " log where there are fewer than n processes or no GPU",
    )
    manual_seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(default=0, description="seed of everything random")
    amp: TrainingPrecision = Field(
        default="none",
        description="mixed precision: none (float32), bf16, fp16; auto: bf16 where the device has units for it and is"
        " faster with it, else none",
    )
    amp_teacher: TrainingPrecision | None = Field(default=None, description="the teacher's precision; ~: as amp")
    channels_last: bool = Field(default=False, description="memory layout that suits convolutions")
    find_unused_parameters: bool = Field(default=False, description="for networks that skip parameters, under DDP")
    l1_gt_usm: bool = Field(default=False, description="pixel_opt compares with sharpened HR images (Real-ESRGAN)")
    percep_gt_usm: bool = Field(default=False, description="likewise perceptual_opt")
    gan_gt_usm: bool = Field(default=False, description="the discriminator's real images are sharpened HR images")
    crop_border: Border | None = Field(
        default=None, description="crop_border of metrics that set none; ~: the scale, 0 at scale 1"
    )
    datasets: Named[DatasetOptions] = Field(
        default=EMPTY, description="train, train_2..., val, val_1, val_2..., test, test_1..."
    )
    network_g: NetworkBlock | None = Field(default=None, description="the network to train or test: the student")
    network_t: NetworkBlock | None = Field(default=None, description="the teacher, frozen")
    network_d: DiscriminatorBlock | None = Field(default=None, description="the discriminator")
    networks: Named[RowOptions] = Field(default=EMPTY, description="for test.py: networks, each a row of the table")
    path: PathOptions = Field(default=PathOptions(), description="weights and folders")
    train: TrainOptions = Field(default=_ABSENT, validate_default=False, description="how to train; None in testing")
    val: ValOptions = Field(default=ValOptions(), description="how to evaluate")
    report: ReportOptions = Field(default=ReportOptions(), description="for test.py: plots, comparison, HTML report")
    deploy: bool = Field(
        default=False,
        description="for test.py: networks as they are shipped: convolutions trained as branches are merged, with equal"
        " outputs; fake quantisation stays",
    )
    logger: LoggerOptions = Field(default=LoggerOptions(), description="what to log and save, how often")
    dist_params: DistOptions = Field(default=DistOptions(), description="distributed training")
    is_train: bool = Field(default=True, exclude=True, description="set by the command, train.py or test.py")
    skip_missing: bool = Field(default=False, description="test.py lists missing datasets and networks and skips them")
    skipped: tuple[str, ...] = Field(default=(), exclude=True, description="what skip_missing left out")
    sources: tuple[str, ...] = Field(default=(), exclude=True, description="the options files that were read")
    root: Path = Field(default=Path("."), exclude=True, description="set by the command: parent of experiments/")

    @classmethod
    def unknown_key(cls, key: Key) -> Problem:
        """As for any section; a key of one of the sections is named with it."""
        sections: dict[str, type[Section]] = {"train": TrainOptions, "val": ValOptions, "path": PathOptions}
        for name, section in (sections | {"logger": LoggerOptions, "report": ReportOptions}).items():
            if key[-1] in section.model_fields:
                return Problem(key, f"unknown key here; it is one of section {name}, {name}:{key[0]} for --force_yml")
        return super().unknown_key(key)

    def __eq__(self, other: object) -> bool:
        """Whether all keys have equal values, whichever files they were read from."""
        return isinstance(other, Options) and super().__eq__(other.model_copy(update={"sources": self.sources}))

    def __hash__(self) -> int:
        return hash((self.name, self.scale))

    @property
    def experiment_folder(self) -> Path:
        """Where a training run keeps its log, options, checkpoints and images: experiments/NAME."""
        return self._run_folder(self.path.experiments_root, "experiments")

    @property
    def models_folder(self) -> Path:
        """Exported networks of a training run."""
        return self.experiment_folder / "models"

    @property
    def training_states_folder(self) -> Path:
        """Training states, from which a run resumes."""
        return self.experiment_folder / "training_states"

    @property
    def results_folder(self) -> Path:
        """Where a test keeps its tables and log: results/NAME."""
        return self._run_folder(self.path.results_root, "results")

    @property
    def saves_images(self) -> bool:
        """Whether output images are saved: as `val: save_img` says, else where test.py's report shows any."""
        if self.val.save_img is not None:
            return self.val.save_img
        report = self.report
        return not self.is_train and bool((report.html and report.images) or (report.plots and report.crops))

    @property
    def visualization_folder(self) -> Path:
        """Where images go that are saved in evaluations."""
        return (self.experiment_folder if self.is_train else self.results_folder) / "visualization"

    @property
    def tensorboard_folder(self) -> Path:
        """Where TensorBoard files go: tb_logger/NAME; with `path: experiments_root` tb_logger is in that folder."""
        return self.root / (self.path.experiments_root or "") / "tb_logger" / self.name

    @property
    def teacher_cache(self) -> str | None:
        """The first of `teacher_caches`; all training sets have one, or none has."""
        return next(iter(self.teacher_caches.values()), None)

    @property
    def further_sets(self) -> dict[str, DatasetOptions]:
        """The sets of training images beside `datasets: train`, by their keys."""
        return {key: dataset for key, dataset in self.datasets_of("train").items() if key != "train"}

    @property
    def teacher_caches(self) -> dict[str, str]:
        """Folders of the teacher's outputs that training reads in the teacher's place, by the key of the set."""
        folders = {key: block.arguments.get("teacher_cache") for key, block in self.datasets_of("train").items()}
        return {key: folder for key, folder in folders.items() if isinstance(folder, str)}

    def datasets_of(self, *phases: str) -> dict[str, DatasetOptions]:
        """The datasets whose phase is one of `phases`, by their key, in the file's order."""
        return {key: dataset for key, dataset in self.datasets.items() if dataset.phase in phases}

    def _run_folder(self, configured: str | None, default: str) -> Path:
        return self.root / (configured or default) / self.name


def flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by their whole names, also those in lists of mappings: `train.distill.many.teachers[0].path`."""
    result: dict[str, Any] = {}
    for key, value in options.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
            for number, entry in enumerate(value):
                result |= flat({f"{key}[{number}]": entry}, prefix)
        else:
            result[f"{prefix}{key}"] = value
    return result
