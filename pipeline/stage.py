"""A stage of the pipeline: what it needs, what it writes, and how its result is recognised as current."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from contracts import artifact, patterns
from contracts.config import Config
from contracts.layout import Workdir


@dataclass(frozen=True)
class Stage:
    """One step from artifacts to artifacts.

    Attributes:
        name: what `--from` and `--to` call it.
        summary: one line for progress.
        after: the stages whose artifacts it reads.
        sections: the config sections that it depends on, or single keys, e.g. "windows.popularity_exponent"; those of
            earlier stages need not be repeated.
        rooms: the rooms whose code it runs, besides contracts; again, earlier stages' need not be repeated.
        outputs: the artifacts that it writes.
        run: writes each output, with the given fingerprint in its manifest.
        sources: files outside the workdir that it reads.
        remote: whether its workdir may be in an object store.
        bases: the base paths, below which versions appear by a rename.
        check: raises ValueError if something that the config names outside the workdir is missing, or the stage could
            do nothing with the config; called before any stage runs, since earlier stages may take hours.
    """

    name: str
    summary: str
    after: tuple[str, ...]
    sections: tuple[str, ...]
    rooms: tuple[str, ...]
    outputs: Callable[[Config, Workdir], tuple[Path, ...]]
    run: Callable[[Config, Workdir, str], object]
    sources: Callable[[Config], tuple[str, ...]] = lambda config: ()
    remote: bool = False
    bases: Callable[[Config, Workdir], tuple[Path, ...]] = lambda config, workdir: ()
    check: Callable[[Config], None] = lambda config: None

    def is_current(self, config: Config, workdir: Workdir, fingerprint: str) -> bool:
        """Whether every output exists whole and was made by the same code from the same inputs and config."""
        return all(artifact.find_current(path, fingerprint) for path in self.outputs(config, workdir))


def fingerprints(
    stages: Iterable[Stage], config: Config, given: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """The fingerprint that each stage's outputs must carry to be current, in the order given.

    `given`: those of stages whose outputs are taken as they are, by name.
    """
    tree = config.model_dump(mode="json")
    result: dict[str, str] = {}
    for stage in stages:
        result[stage.name] = given.get(stage.name) or artifact.fingerprint(
            artifact.code_of("contracts", *stage.rooms),
            stage.name,
            {section: functools.reduce(operator.getitem, section.split("."), tree) for section in stage.sections},
            [result[name] for name in stage.after],
            [identity for pattern in stage.sources(config) for identity in patterns.identities(pattern).values()],
        )
    return result
