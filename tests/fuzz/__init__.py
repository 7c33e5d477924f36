# SPDX-License-Identifier: Apache-2.0
"""Structure-aware fuzzing: valid inputs, changed in a few places, given to the commands that read them.

``python -m tests.fuzz --minutes N`` runs all targets, ``--targets NAME`` some. A target is a module of this package
that has what `tests.fuzz.target` says.
"""
