"""The tables of MCAD-KD (3 to 5), MiPKD (2 to 5) and DCKD (2): super-resolution."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from option_files.common import HEADER, LABELS, MODELS, indented

SCALES = (2, 3, 4)
NAMES = {"edsr": "EDSR", "rcan": "RCAN", "swinir": "SwinIR"}
TABLES: dict[str, dict[str, str]] = {
    "edsr": {
        "MCAD-KD's Table 3": "scratch kd fitnet rkd fakd csd dukd mipkd mcadkd",
        "MiPKD's Table 2": "scratch kd rkd at fitnet fakd csd mipkd",
    },
    "rcan": {
        "MCAD-KD's Table 4": "scratch kd fitnet rkd fakd dukd mipkd mcadkd",
        "MiPKD's Table 3": "scratch kd rkd at fitnet fakd mipkd",
        "DCKD's Table 2": "scratch kd fakd mipkd dckd dckd_dukd",
    },
    "swinir": {
        "MCAD-KD's Table 5": "scratch kd dukd mipkd mcadkd",
        "MiPKD's Table 4": "scratch kd mipkd",
        "DCKD's Table 2": "scratch kd fakd mipkd dckd dckd_dukd",
    },
}
"""Which methods each table compares, by network; DCKD* at x4 only."""


@dataclass(frozen=True)
class Variant:
    """A piece that reads a table's row in another way.

    Attributes:
        of: the piece of the row.
        networks: it is shipped for.
        reading: the end of the comment that says which row it is.
    """

    of: str
    networks: str
    reading: str


VARIANTS = {
    "dckd_as_published": Variant("dckd", "rcan swinir", "as its authors' public code would run it"),
    "mcadkd_equations": Variant("mcadkd", "edsr rcan swinir", "with eqs. 2 and 4 to the letter"),
    "mcadkd_as_published": Variant("mcadkd", "edsr swinir", "as the authors' public repository would have run it"),
}
"""The public code of MCAD-KD has options for EDSR and SwinIR, that of DCKD for SwinIR."""

TEACHERS = {
    "edsr": {
        2: "EDSR_Lx2_f256b32_DIV2K_official-be38e77d.pth",
        3: "EDSR_Lx3_f256b32_DIV2K_official-3660f70d.pth",
        4: "EDSR_Lx4_f256b32_DIV2K_official-76ee1c8f.pth",
    },
    "rcan": {scale: f"RCAN_x{scale}.pth" for scale in SCALES},
    "swinir": {scale: f"001_classicalSR_DIV2K_s48w8_SwinIR-M_x{scale}.pth" for scale in SCALES},
}
TEACHER_OF_EVERY_SCALE = {
    "edsr": "EDSR_Lx{scale}_f256b32_DIV2K_official-*.pth",
    "rcan": "RCAN_x{scale}.pth",
    "swinir": "001_classicalSR_DIV2K_s48w8_SwinIR-M_x{scale}.pth",
}


_DUKD_AS_PUBLISHED = {
    "swinir": (
        "",
        "train:",
        "  distill:",
        "    dukd:",
        "      zoom_out: false         # as published for SwinIR",
    ),
    "rcan": (
        "",
        "train:                        # as published for RCAN",
        "  pixel_opt: {loss_weight: 1.0}",
        "  distill:",
        "    dukd:",
        "      zoom_out: false",
        "      consistency_probability: 0.0",
    ),
}
"""Lines by which DUKD's settings differ from those for EDSR."""


_MCADKD_AS_PUBLISHED = {
    "edsr": (
        "  self_ensemble: true         # its figures while training are those of eight flips and rotations",
        "",
        "train:",
        "  scheduler: {type: MultiStepLR, milestones: [250000, 400000, 450000, 475000], gamma: 0.5}",
        "  total_iter: 5e5",
        "  optim_g: {lr: 1e-3}",
    ),
    "swinir": (
        "",
        "train:",
        "  ema_decay: 0.999",
        "  scheduler: {type: MultiStepLR, milestones: [250000, 375000, 450000, 475000], gamma: 0.5}",
        "  total_iter: 5e5",
    ),
}
"""Lines of its public options, which are those of EDSR x2 and of SwinIR x2 and x3. The first follow `val`."""

_LARGE_BATCH = "batch_size_per_gpu: 32    # in all; on four GPUs, 8. MiPKD's and DCKD's papers: 16 in all"
_BATCH_OF_16 = "batch_size_per_gpu: 16    # in all; on four GPUs, 4"
"""MCAD-KD's batch, which the rows that its tables have take, and that of MiPKD and DCKD."""


@dataclass(frozen=True)
class SuperResolution:
    """A training file of a super-resolution table.

    Attributes:
        name: of file and experiment.
        piece: of options/methods.
        purpose: the comment that says which row it reproduces.
        scale: upscaling factor.
        student: lines of `network_g` beside `upscale`.
        teacher: likewise of `network_t`; empty for none.
        teacher_weights: path of the teacher's weights.
        batch: lines of the batch size.
        extra: further lines at the end.
    """

    name: str
    piece: str
    purpose: str
    scale: int
    student: tuple[str, ...]
    teacher: tuple[str, ...] = ()
    teacher_weights: str = ""
    batch: str = _LARGE_BATCH
    extra: tuple[str, ...] = ()

    def text(self) -> str:
        """The file's content."""
        return "\n".join([*self._head(), *self._data(), *self._networks(), *self._validation(), *self.extra, ""])

    def _head(self) -> list[str]:
        base = f"_base_: [../base/runtime.yml, ../base/paper_schedule.yml, ../methods/{self.piece}.yml]"
        return [HEADER + f"# {self.purpose}", base, f"name: {self.name}", f"scale: {self.scale}", ""]

    def _data(self) -> list[str]:
        s = self.scale
        return [
            "datasets:",
            "  train:",
            "    _base_: ../base/div2k.yml",
            "    dataroot_gt: datasets/DIV2K/DIV2K_train_HR",
            f"    dataroot_lq: datasets/DIV2K/DIV2K_train_LR_bicubic/X{s}",
            f"    filename_tmpl: '{{}}x{s}'",
            f"    gt_size: {48 * s}".ljust(30) + "# LR patches of 48x48",
            f"    {self.batch}",
            "  val:",
            "    _base_: ../base/benchmark.yml",
            "    name: Set5",
            "    dataroot_gt: datasets/benchmark/Set5/HR",
            f"    dataroot_lq: datasets/benchmark/Set5/LR_bicubic/X{s}",
            f"    filename_tmpl: '{{}}x{s}'",
            "",
        ]

    def _networks(self) -> list[str]:
        lines = ["network_g:" + "                    # the student" * bool(self.teacher), *indented(self.student)]
        lines.append(f"  upscale: {self.scale}")
        if self.teacher:
            role = "the teacher, whose first channels the student is" if self.piece == "csd" else "the teacher, frozen"
            lines += ["network_t:".ljust(30) + f"# {role}", *indented(self.teacher)]
            lines.append(f"  upscale: {self.scale}")
        lines += ["", "path:"]
        if self.teacher:
            lines += [f"  pretrain_network_t: {self.teacher_weights}", "  strict_load_t: true", "  param_key_t: params"]
        return [*lines, "  pretrain_network_g: ~", "  resume_state: ~", ""]

    def _validation(self) -> list[str]:
        settings = f"crop_border: {self.scale}, test_y_channel: true"
        return [
            "val:",
            "  val_freq: 5e3",
            "  save_img: false",
            "  metrics:",
            f"    psnr: {{type: calculate_psnr, {settings}}}",
            f"    ssim: {{type: calculate_ssim, {settings}}}",
        ]


def _network(name: str) -> tuple[str, ...]:
    return (f"_base_: ../networks/{name}.yml",)


def methods_of(network: str, scale: int | None = None) -> list[str]:
    """The pieces that the tables compare on a network, in the tables' order; without a scale, of all scales."""
    named = dict.fromkeys(piece for pieces in TABLES[network].values() for piece in pieces.split())
    return [piece for piece in LABELS if piece in named and (piece != "dckd_dukd" or scale in (None, 4))]


def rows_of(network: str, scale: int | None = None) -> list[str]:
    """`methods_of`, with the other readings of their rows among them."""
    read = {*methods_of(network, scale), *(piece for piece in VARIANTS if network in VARIANTS[piece].networks.split())}
    return [piece for piece in LABELS if piece in read]


def papers_tables() -> Iterator[SuperResolution]:
    """The training files of the tables of MCAD-KD, of MiPKD's Tables 2 to 4 and of DCKD's Table 2."""
    for network in TABLES:
        for scale in SCALES:
            yield SuperResolution(
                f"teacher_{network}_x{scale}",
                "scratch",
                f"The teacher of {NAMES[network]} x{scale} (Table 2 of MCAD-KD), where its published weights are not at"
                " hand.",
                scale,
                _network(f"{network}_teacher"),
            )
            for piece in rows_of(network, scale):
                yield _row(network, scale, piece)


def _row(network: str, scale: int, piece: str) -> SuperResolution:
    variant = VARIANTS.get(piece)
    row = variant.of if variant else piece
    tables = [table for table, pieces in TABLES[network].items() if row in pieces.split()]
    reading = f", {variant.reading}" if variant else "; mining and mean are ours" * (piece == "mcadkd")
    taught = piece != "scratch"
    return SuperResolution(
        f"{piece}_{network}_x{scale}",
        piece,
        f"Row {LABELS[piece]} of {NAMES[network]} x{scale} in {', '.join(tables)}{reading}.",
        scale,
        (*_network(f"{network}_student"), *_own_student(network, piece)),
        _network(f"{network}_teacher") if taught else (),
        f"experiments/pretrained_models/{TEACHERS[network][scale]}" if taught else "",
        _batch(tables, piece),
        _extra(network, piece),
    )


def _batch(tables: Sequence[str], piece: str) -> str:
    if any("MCAD-KD" in table for table in tables):
        return _LARGE_BATCH
    return f"{_BATCH_OF_16}{'; its public options: on each of four' * (piece == 'dckd_as_published')}"


def _own_student(network: str, piece: str) -> tuple[str, ...]:
    """What the student has beside the lines of options/networks."""
    if piece == "csd":
        return ("res_scale: 0.1              # the teacher's: they share their weights",)
    if (network, piece) == ("edsr", "mcadkd_as_published"):
        return ("res_scale: 0.1              # the paper's student: 1",)
    return ()


def _extra(network: str, piece: str) -> tuple[str, ...]:
    """Lines at the end of a file: what a network, or public code, has otherwise."""
    if piece == "dukd":
        return _DUKD_AS_PUBLISHED.get(network, ())
    if piece == "dckd_dukd":
        return (*_DUKD_AS_PUBLISHED.get(network, ()), "      pixel_weight: ~         # of zoom-out")
    if piece == "dckd_as_published":
        schedule = "  scheduler: {type: MultiStepLR, milestones: [250000], gamma: 0.1}   # 1e-4 throughout"
        return ("", "train:", schedule)
    return _MCADKD_AS_PUBLISHED[network] if piece == "mcadkd_as_published" else ()


_SMALL = "c64b16"
_HIGH_COMPRESSION = ("scratch", "kd", "fitnet", "fakd", "fakd_csd", "csd_fakd", "mipkd_mipkd")
_NARROW_STUDENT = (*_network("edsr_student"), "num_block: 16")
_SHALLOW_TEACHER = (*_network("edsr_teacher"), "num_block: 16")


def high_compression() -> Iterator[SuperResolution]:
    """MiPKD's Table 5, EDSR x4 from c256b32 to c64b16: at once, and in two stages over an assistant."""
    table = "in MiPKD's Table 5, EDSR x4 from c256b32 to c64b16"
    teacher, weights = _network("edsr_teacher"), f"experiments/pretrained_models/{TEACHERS['edsr'][4]}"

    def row(
        name: str, piece: str, purpose: str, student: tuple[str, ...], taught: tuple[str, ...] = (), weights: str = ""
    ) -> SuperResolution:
        return SuperResolution(name, piece, purpose, 4, student, taught, weights, _BATCH_OF_16)

    yield row(f"scratch_edsr_{_SMALL}_x4", "scratch", f"Row NOKD {table}.", _NARROW_STUDENT)
    for piece in ("kd", "fitnet", "fakd"):
        purpose = f"Row {LABELS[piece]} {table}."
        yield row(f"{piece}_edsr_{_SMALL}_x4", piece, purpose, _NARROW_STUDENT, teacher, weights)
    for piece in ("fakd", "mipkd"):
        purpose = f"The first stage of row {LABELS[piece]}+{'CSD' if piece == 'fakd' else 'MiPKD'} {table}: c256b16."
        yield row(f"{piece}_edsr_c256b16_x4", piece, purpose, _SHALLOW_TEACHER, teacher, weights)
    stages = (
        ("fakd_csd", "csd", "fakd_edsr_c256b16_x4", _SHALLOW_TEACHER, "FAKD+CSD"),
        ("csd_fakd", "fakd", "csd_edsr_x4", (*_network("edsr_student"), "res_scale: 0.1"), "CSD+FAKD"),
        ("mipkd_mipkd", "mipkd", "mipkd_edsr_c256b16_x4", _SHALLOW_TEACHER, "MiPKD+MiPKD"),
    )
    for name, piece, assistant, network, label in stages:
        student = _NARROW_STUDENT
        if piece == "csd":
            student = (*student, "res_scale: 0.1              # the assistant's: they share their weights")
        purpose = f"The second stage of row {label} {table}; the first is {assistant}.yml."
        yield row(f"{name}_edsr_{_SMALL}_x4", piece, purpose, student, network, MODELS.format(assistant))


def test_files() -> Iterator[tuple[str, str]]:
    """Names and contents of the files for test.py: all methods of a network, at all scales and at each."""
    for network in TABLES:
        tables = ", ".join(TABLES[network])
        student = f"_base_: ../networks/{network}_student.yml, upscale: '{{scale}}'"
        rows = {}
        for piece in rows_of(network):
            own = "".join(f", {line.split('#')[0].strip()}" for line in _own_student(network, piece))
            rows[piece] = (f"{piece}_{network}_x{{scale}}", f"{student}{own}")
        purpose = f"{tables}: {NAMES[network]} at x2, x3 and x4"
        yield network, _test_file(network, network, purpose, "[2, 3, 4]", rows, NAMES[network])
        for scale in SCALES:
            name = f"{network}_x{scale}"
            purpose = f"# {tables}: {NAMES[network]} x{scale}.\n"
            yield name, HEADER + purpose + f"_base_: {network}.yml\nname: {name}\nscale: {scale}\n"
    name = f"edsr_{_SMALL}_x4"
    student = "_base_: ../networks/edsr_student.yml, num_block: 16, upscale: 4"
    rows = {row: (f"{row}_{name}", student) for row in _HIGH_COMPRESSION}
    rows["fakd_csd"] = (rows["fakd_csd"][0], f"{student}, res_scale: 0.1")
    purpose = "MiPKD's Table 5: EDSR x4 of 64 channels and 16 blocks"
    yield name, _test_file(name, "edsr", purpose, "4", rows, "EDSR c64b16")


def _test_file(
    name: str, network: str, purpose: str, scale: str, rows: Mapping[str, tuple[str, str]], published: str
) -> str:
    """A file for test.py.

    Args:
        name: of the test.
        network: whose teacher stands above the rows.
        purpose: which table it is for.
        scale: one or a list.
        rows: by label, the experiment and the network's block.
        published: backbone of the published figures.
    """
    several = scale.startswith("[")
    lines = [
        HEADER + f"# {purpose}. What is not trained yet is left out.",
        "_base_: ../base/benchmarks.yml",
        f"name: {name}",
        f"scale: {scale}".ljust(30) + "# one run for each" if several else f"scale: {scale}",
        "num_gpu: auto                 # auto | 0 (CPU) | n",
        "",
        "networks:                     # a row of the table each",
        "  bicubic: {type: bicubic}",
        "  teacher:",
        f"    network: {{_base_: ../networks/{network}_teacher.yml, upscale: '{{scale}}'}}",
        f"    path: experiments/pretrained_models/{TEACHER_OF_EVERY_SCALE[network]}",
    ]
    for label, (run, block) in rows.items():
        lines += [f"  {label}:", f"    network: {{{block}}}", f"    path: {MODELS.format(run)}"]
        if label == "dckd_as_published" or (network, label) == ("swinir", "mcadkd_as_published"):
            lines.append("    param_key: params_ema")
    last = f"  published: {published}".ljust(30) + "# published figures beside ours; ~ for ours alone"
    return "\n".join([*lines, "", "report:", last, ""])
