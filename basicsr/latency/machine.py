"""What the machine is, and how much energy it has used."""

from __future__ import annotations

from pathlib import Path

from basicsr.utils.pass_times import processor
from basicsr.utils.process_settings import num_processors

# In the order of their age: those that decide how fast networks are.
_SETS = (
    *("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve"),
)
_POWERCAP = Path("/sys/class/powercap")


def this_device() -> str:
    """The processor and how many cores of it this process may use."""
    cores = num_processors()
    return f"{processor()[0]}, {cores} core{'s' if cores > 1 else ''}"


def instruction_sets() -> tuple[str, ...]:
    """Of the processor, as Linux names them."""
    features = processor()[1]
    return tuple(name for name in _SETS if name in features)


class EnergyMeter:
    """Energy of all processor packages by Linux's powercap interface (RAPL).

    Attributes:
        reason: why it does not tell; empty where it does.
    """

    def __init__(self, root: Path = _POWERCAP) -> None:
        self._zones: list[Path] = []
        self.reason = ""
        zones = sorted(root.glob("intel-rapl:?")) + sorted(root.glob("intel-rapl:??"))
        zones = [zone for zone in zones if _text(zone / "name").startswith("package")]
        if not zones:
            self.reason = "the system tells no energy of the processor (no RAPL in /sys/class/powercap)"
            return
        try:
            for zone in zones:
                int((zone / "energy_uj").read_text())
        except (OSError, ValueError) as error:
            self.reason = f"{zone / 'energy_uj'} cannot be read ({type(error).__name__}); root may"
            return
        self._zones = zones

    def joules(self) -> list[float]:
        """Counters of the packages, in joules; empty where they are not told."""
        return [int((zone / "energy_uj").read_text()) / 1e6 for zone in self._zones]

    def between(self, before: list[float], after: list[float]) -> float:
        """Joules used between two readings; counters begin anew at their range."""
        total = 0.0
        for zone, first, second in zip(self._zones, before, after, strict=True):
            total += second - first if second >= first else second + _range(zone) - first
        return total


def _range(zone: Path) -> float:
    return int((zone / "max_energy_range_uj").read_text()) / 1e6


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
