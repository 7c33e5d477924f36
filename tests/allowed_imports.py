# SPDX-License-Identifier: Apache-2.0
"""A kind of contract for import-linter: packages that import nothing of ours but what is allowed."""

from __future__ import annotations

from typing import Any

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output

__all__ = ["AllowedImports"]


def _within(module: str, packages: list[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


class AllowedImports(Contract):
    """Each module of ``packages`` imports only these packages, those of ``allowed`` and what is not ours."""

    packages = fields.ListField(subfield=fields.StringField())
    allowed = fields.ListField(subfield=fields.StringField(), required=False, default=[])

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        packages: list[str] = list(self.packages)  # type: ignore[call-overload]
        allowed: list[str] = [*packages, *self.allowed]  # type: ignore[misc]
        if missing := [package for package in allowed if package not in graph.modules]:
            raise ValueError(f"contract {self.name!r} names {', '.join(missing)}, which do not exist")
        broken: list[dict[str, Any]] = [
            detail
            for importer in sorted(graph.modules)
            if _within(importer, packages)
            for imported in sorted(graph.find_modules_directly_imported_by(importer))
            if not _within(imported, allowed)
            for detail in graph.get_import_details(importer=importer, imported=imported)
        ]
        return ContractCheck(kept=not broken, metadata={"broken": broken})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for detail in check.metadata["broken"]:
            output.print_error(f"{detail['importer']}:{detail['line_number']} imports {detail['imported']}")
