# SPDX-License-Identifier: Apache-2.0
"""Statistics of a model on real inputs, and how they are collected block by block."""
