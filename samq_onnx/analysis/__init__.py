# SPDX-License-Identifier: Apache-2.0
"""What quantizing costs and why: errors of single sites, widths chosen by them, and a page that shows it."""
