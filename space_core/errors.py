"""Every error that a user of the library, the command line or the page can cause.

The message is one sentence that says what is wrong and what to do; callers show it as it stands.
"""


class SpaceError(Exception):
    """Base class: bad input or an unusable model, never a defect of this program."""


class SettingError(SpaceError):
    """A setting is out of its range.

    Attributes:
        field: name of the offending field of :class:`space_core.settings.Settings`.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class PromptError(SpaceError):
    """The prompt is empty or does not fit the model's context window."""


class CheckpointError(SpaceError):
    """A checkpoint is missing, damaged or does not fit its base model."""


class UnsupportedModelError(SpaceError):
    """The model cannot run SPACE: no 4-D mask, or a cache that cannot be rolled back."""


class TraceError(SpaceError):
    """A trace read from JSON is not a trace."""


class ResultError(SpaceError):
    """A benchmark's result file is missing, or is none."""


def first_line(error: BaseException, most: int = 160) -> str:
    """What another library's error says, in one line; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]
