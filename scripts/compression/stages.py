"""The options of each training of a run: what the options file says, with what its stage changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compression.candidates import Candidate
from compression.options import Settings

_SAVES = 4  # checkpoints of a brief training
_SELF = {"type": "SelfDistillation"}
_END = 0.01  # of its first learning rate, where the quantised training ends


class Stages:
    """The trainings' options of a run.

    Args:
        settings: of the run.
        folder: of the run.
        caches: folders of the teacher's outputs, by the key of the training set; empty where the teacher itself runs.
        precision: what `amp: auto` is in all of them.
    """

    def __init__(
        self, settings: Settings, folder: Path, caches: Mapping[str, str], precision: Mapping[str, str] = {}
    ) -> None:
        self._settings, self._folder, self._caches, self._precision = settings, folder, caches, precision

    def search(self, candidate: Candidate, rung: int) -> dict[str, Any]:
        """A brief training up to the end of a rung, counted from 0: a constant rate, judged by averaged weights."""
        search = self._settings.compress.search
        content = self._content(f"search_{candidate.name}", candidate)
        train = content["train"]
        lr = self._lr / 2 if search.lr is None else search.lr
        train |= {"total_iter": search.iterations * search.eta**rung, "scheduler": None, "ema_decay": search.ema_decay}
        train |= {"warmup_iter": -1, "optim_g": {**train["optim_g"], "lr": lr * candidate.lr_factor}}
        return self._short(content)

    def distil(self, candidate: Candidate, seed: int | None = None) -> dict[str, Any]:
        """The long training of a student, as the options file says, from the seed's initial weights."""
        own = seed in (None, self._settings.options.manual_seed)
        name = f"distil_{candidate.name}" if own else f"distil_{candidate.name}_seed{seed}"
        content = self._content(name, candidate)
        if seed is not None:
            content["manual_seed"] = seed
        content["val"] = {"val_freq": content["train"]["total_iter"], **content["val"]}
        return content

    def quantise(self, candidate: Candidate, weights: Path) -> dict[str, Any]:
        """Quantisation-aware distillation from the weights of `distil`."""
        quantize = self._settings.compress.quantize
        assert quantize is not None
        content = self._content(f"quantise_{candidate.name}", candidate)
        train, path = content["train"], content["path"]
        averaged = self._settings.options.train.ema_decay > 0
        path |= {"pretrain_network_g": str(weights), "param_key_g": "params_ema" if averaged else "params"}
        lr = candidate.lr_factor * (self._lr / 10 if quantize.lr is None else quantize.lr)
        train |= {"total_iter": quantize.iterations, "warmup_iter": -1, "optim_g": {**train["optim_g"], "lr": lr}}
        train["scheduler"] = {"type": "CosineAnnealingLR", "T_max": quantize.iterations, "eta_min": lr * _END}
        train["quantize"] = quantize.settings.to_data()
        distill = dict(train.get("distill") or {})
        if not any(isinstance(term, Mapping) and term.get("type") == _SELF["type"] for term in distill.values()):
            train["distill"] = {**distill, "float_self": dict(_SELF)}
        return self._short(content)

    @property
    def _lr(self) -> float:
        """As the options file says."""
        return float(self._settings.options.train.optim_g["lr"])

    def cache(self) -> dict[str, Any]:
        """Options for cache_teacher.py: the teacher, the images, any student."""
        stand_in = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1}
        block = {**stand_in, "upscale": self._settings.options.scale}
        content = self._content("teacher_cache", Candidate("any", "any", "any", block))
        for key, dataset in content["datasets"].items():
            if key.partition("_")[0] == "train":
                dataset.pop("teacher_cache", None)
        return content

    def _content(self, name: str, candidate: Candidate) -> dict[str, Any]:
        given = copy.deepcopy(dict(self._settings.content))
        front = {"name": name, "model_type": given.pop("model_type"), **self._precision}
        content = {**front, **{key: value for key, value in given.items() if key not in front}}
        content["network_g"] = dict(candidate.block)
        if candidate.lr_factor != 1:
            content["train"]["optim_g"] = {**content["train"]["optim_g"], "lr": self._lr * candidate.lr_factor}
        datasets = content["datasets"]
        content["datasets"] = {key: block for key, block in datasets.items() if key.partition("_")[0] != "test"}
        for key, folder in self._caches.items():
            content["datasets"][key]["teacher_cache"] = folder
        content["path"] = {**(content.get("path") or {}), "experiments_root": str(self._folder / "runs")}
        content["logger"] = {"use_tb_logger": False, **(content.get("logger") or {})}
        return content

    def _short(self, content: dict[str, Any]) -> dict[str, Any]:
        """Evaluated at its end, saved now and then."""
        total = content["train"]["total_iter"]
        content["val"] = {**content["val"], "val_freq": total, "patience": None}
        saves = {"save_checkpoint_freq": max(1, total // _SAVES), "keep_checkpoints": 2}
        content["logger"] |= {**saves, "print_freq": max(1, min(100, total // 10))}
        return content
