# SPDX-License-Identifier: Apache-2.0
"""Graph passes: ``lift`` recognises, ``fold`` rewrites exactly, ``lower`` turns a plan into integers."""
