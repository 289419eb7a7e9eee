"""`Frames`, what `load` gives: one pandas frame per grain, with export, SQL and filters over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd

from harvest_nb.errors import RunFolderError
from harvest_nb.tables.columns import COLUMNS, FRAME_NAMES, build, describe, to_arrow

__all__ = ["Frames"]


@dataclass(frozen=True, repr=False)
class Frames:
    """What `load` gives: one pandas frame per grain. `Frames.describe("usage")` documents the columns."""

    files: pd.DataFrame
    runs: pd.DataFrame
    sessions: pd.DataFrame
    records: pd.DataFrame
    messages: pd.DataFrame
    blocks: pd.DataFrame
    turns: pd.DataFrame
    tool_calls: pd.DataFrame
    usage: pd.DataFrame
    result_usage: pd.DataFrame
    endpoint_usage: pd.DataFrame
    costs: pd.DataFrame
    problems: pd.DataFrame

    @staticmethod
    def from_rows(rows: dict[str, list[dict[str, Any]]]) -> Frames:
        """Frames of rows as dicts, by the frame's name."""
        return Frames(**{name: build(name, rows[name]) for name in FRAME_NAMES})

    @staticmethod
    def describe(name: str | None = None) -> pd.DataFrame:
        """Column, type, unit and meaning for the frame `name`, or for all of them."""
        return describe(name)

    def __iter__(self) -> Iterator[tuple[str, pd.DataFrame]]:
        return ((field.name, getattr(self, field.name)) for field in fields(self))

    def __repr__(self) -> str:
        return "Frames(" + ", ".join(f"{name}: {len(frame)}" for name, frame in self) + ")"

    def filter(
        self, where: Callable[[pd.DataFrame], Any] | str | None = None, **equal: str | Iterable[str]
    ) -> Frames:
        """The frames of some runs only.

        Args:
            where: a query over `runs` as text (`"cost_usd > 1"`), or a function from `runs` to a mask.
            equal: column of `runs` = value or values: `filter(project="-home-me-app", model=[...])`.

        Raises:
            RunFolderError: `runs` has no such column.
        """
        runs = self.runs
        for column, wanted in equal.items():
            if column not in runs:
                raise RunFolderError(
                    f"runs has no column {column}", hint="Frames.describe('runs') lists its columns"
                )
            values = [wanted] if isinstance(wanted, str | int | float | bool) else list(wanted)
            runs = runs[runs[column].isin(values)]
        if callable(where):
            runs = runs[where(runs).astype(bool).to_numpy()]
        elif where is not None:
            runs = runs.query(where)
        chosen = set(runs["run_id"])
        sessions = set(runs["session_id"].dropna())
        paths = set(self.records.loc[self.records["run_id"].isin(chosen), "path"])
        kept: dict[str, pd.DataFrame] = {}
        for name, frame in self:
            if "run_id" in frame:
                mask = frame["run_id"].isin(chosen)
            elif name == "sessions":
                mask = frame["session_id"].isin(sessions)
            else:
                mask = frame["path"].isin(paths)
            kept[name] = frame[mask].reset_index(drop=True)
        return Frames(**kept)

    def to_parquet(self, folder: str | PathLike[str]) -> list[Path]:
        """Write one Parquet file per frame into `folder`, which is made; gives their paths."""
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        written: list[Path] = []
        for name, frame in self:
            written.append(place / f"{name}.parquet")
            pq.write_table(to_arrow(name, frame), written[-1], compression="zstd")
        return written

    @staticmethod
    def from_parquet(folder: str | PathLike[str]) -> Frames:
        """The frames that `to_parquet` wrote.

        Raises:
            RunFolderError: a file is missing or is no such frame.
        """
        import pyarrow.parquet as pq

        place = Path(folder)
        try:
            tables = {name: pq.read_table(place / f"{name}.parquet") for name in FRAME_NAMES}
            return Frames(
                **{
                    name: build(name, table.select([c.name for c in COLUMNS[name]]).to_pylist())
                    for name, table in tables.items()
                }
            )
        except (OSError, KeyError, ValueError) as error:
            raise RunFolderError(
                f"{place} holds no frames: {error}", hint="Frames.to_parquet(folder) writes them"
            ) from error

    def sql(self, query: str) -> pd.DataFrame:
        """The result of a DuckDB query in which every frame is a table; money stays exact, times stay UTC.

        >>> frames.sql("select model, sum(cost_usd) usd from costs group by model")  # doctest: +SKIP
        """
        import duckdb

        with duckdb.connect(config={"enable_external_access": "false"}) as connection:
            connection.execute("set timezone = 'UTC'")
            for name, frame in self:
                connection.register(name, to_arrow(name, frame))
            table: Any = connection.sql(query)
            if table is None:
                raise RunFolderError("The query has no result", hint="ask with a select")
            found: pd.DataFrame = table.to_arrow_table().to_pandas(types_mapper=pd.ArrowDtype)
        return found
