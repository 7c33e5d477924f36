# SPDX-License-Identifier: Apache-2.0
"""Graph passes: ``lift`` recognises, ``fold`` rewrites exactly, ``lower`` turns a plan into integers."""

import logging

for _name in ("onnxscript", "onnx_ir"):  # what their passes leave alone is no news for users
    logging.getLogger(_name).setLevel(logging.ERROR)
