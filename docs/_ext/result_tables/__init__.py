"""The directive `result-table`: tables of the results, from the files in `measurements/results/` when a page is built.

No figure is typed in here or in a table of a page. Machine and date are those that the files name. Each module has the
tables of one page.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from result_tables import budgets, cost, evidence, files, losses, queries, raters, readers, shift, surfaces, training

_PAGES = (training, losses, evidence, budgets, shift, readers, raters, queries, surfaces, cost, files)
TABLES: dict[str, Callable[[], str]] = {
    table.__name__.replace("_", "-"): table for page in _PAGES for table in page.TABLES
}


class ResultTable(SphinxDirective):
    """One table, by its name in `TABLES`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table and the line below it."""
        name = self.arguments[0]
        if name not in TABLES:
            raise self.error(f"no table {name}; there are {', '.join(TABLES)}")
        container = nodes.Element()
        self.state.nested_parse(StringList(TABLES[name]().splitlines(), source=name), 0, container)
        return list(container.children)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("result-table", ResultTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
