"""What the log says, told to accelerate's trackers as well: `--track tensorboard,wandb`.

`log.jsonl` stays the record; a resumed run continues that, but begins a new one with most trackers.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from space_core.errors import SettingError, first_line


class Trackers:
    """Trackers of one run, started; called with each entry of its log.

    Args:
        names: as accelerate calls them.
        run: the run's folder; those that write files do so in its `trackers`.
        options: shown by the tracker beside the run.

    Raises:
        SettingError: for a tracker that is unknown, not installed, or does not start.
    """

    def __init__(self, names: Iterable[str], run: Path, options: dict[str, Any]) -> None:
        self._all: list[Any] = []
        self._first: dict[str, int] = {}
        self._last = 0
        if not (names := tuple(names)):
            return
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        for name in names:
            kind = LOGGER_TYPE_TO_CLASS.get(name)
            if kind is None:
                known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
                raise SettingError("track", f"there is no tracker {name!r:.40}: choose from {known}")
            place = (str(run / "trackers"),) if kind.requires_logging_directory else ()
            try:
                tracker = kind(run.name, *place)
                tracker.start()
                tracker.store_init_configuration({key: _plain(value) for key, value in options.items()})
            except ImportError:
                raise SettingError("track", f"{name} is not installed: pip install {name}") from None
            except Exception as error:  # a service's own: no account, no network, no right
                raise SettingError("track", f"{name} does not start: {first_line(error, 200)}") from None
            self._all.append(tracker)

    def __call__(self, stage: str, step: int, values: dict[str, Any]) -> None:
        """Numbers of a stage; stages follow each other on one axis, since trackers want steps that rise."""
        step += self._first.setdefault(stage, self._last)
        self._last = max(self._last, step)
        numbers = {f"{stage}/{k}": float(v) for k, v in values.items() if isinstance(v, int | float)}
        for tracker in self._all if numbers else ():
            tracker.log(numbers, step=step)

    def finish(self) -> None:
        for tracker in self._all:
            tracker.finish()


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)
