"""Errors that are no fault of the program, and the exit code a command then ends with.

Every message says in one line, or in one for each mistake, what was given, what is allowed and what to change. Commands
print it without a traceback; anything that is not a `UserError` is a bug and keeps its traceback.
"""

# PyTorch says it in many ways: its CPU allocator (Linux, Windows), C++, oneDNN, cuBLAS and cuDNN, Apple's GPUs.
_OUT_OF_MEMORY = (
    "OutOfMemoryError",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "out of memory",
    "could not create a memory",
    "could not create a primitive",
    "could not execute a primitive",
    "ALLOC_FAILED",
)


class UserError(ValueError):
    """A mistake that the user can mend.

    Attributes:
        exit_code: what the command returns to the shell.
        known_to_all: whether every rank raises it, so that one of them reports it.
        printed_elsewhere: whether another rank reports it.
        first_hand: False if possibly caused by another rank's failure.
    """

    exit_code = 1
    known_to_all = False
    printed_elsewhere = False
    first_hand = True

    def extend(self, *, before: str = "", after: str = "") -> None:
        """Adds text before or after the message."""
        self.args = (f"{before}{self}{after}",)


class OptionsError(UserError):
    """The options file or the command line is wrong."""

    exit_code = 2


class DataError(UserError):
    """An image, a folder or a database is missing, damaged or does not fit."""

    exit_code = 3


class AssertedOptionsError(OptionsError, AssertionError):
    """`OptionsError` where BasicSR has an `assert`: code written for it may catch AssertionError."""


class AssertedDataError(DataError, AssertionError):
    """`DataError` where BasicSR has an `assert`: code written for it may catch AssertionError."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, for another network, or cannot be written."""

    exit_code = 4


class NonFiniteError(UserError):
    """A loss or a gradient became NaN or infinite."""

    exit_code = 5


class MachineError(UserError):
    """The machine lacks what the options ask for (a device, a package, a launcher's variables)."""

    exit_code = 6


class Preempted(UserError):
    """The run was asked to stop; it has saved its state and can be resumed."""

    exit_code = 75
    known_to_all = True


class Interrupted(UserError):
    """A command without a state to save was asked to stop."""

    exit_code = 130


class ForeignError(UserError):
    """A bug, not the user's mistake; `__cause__` is the error itself, on the rank that has it."""


class LostRankError(UserError):
    """Another process of the run ended or cannot be reached."""

    exit_code = 7


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no more memory."""
    text = f"{type(error).__name__}: {error}"
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in text for sign in _OUT_OF_MEMORY)
    )
