# SPDX-License-Identifier: Apache-2.0
"""Plans as they were, so that a change of any number is seen: ``python -m tests.golden`` writes them anew."""
