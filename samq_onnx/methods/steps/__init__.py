# SPDX-License-Identifier: Apache-2.0
"""The steps that methods are made of."""

from __future__ import annotations

from samq_onnx.methods.steps.attention_repair import AttentionRepairSettings, RepairAttention
from samq_onnx.methods.steps.balance import BalanceOperands
from samq_onnx.methods.steps.best_codes import BestCodes
from samq_onnx.methods.steps.best_of import BestOf
from samq_onnx.methods.steps.clip_by_focus import ClipAs, ClipByFocus
from samq_onnx.methods.steps.first_of import FirstOf
from samq_onnx.methods.steps.gptq import Gptq, GptqSettings
from samq_onnx.methods.steps.hybrid import HybridInputs
from samq_onnx.methods.steps.keep_better import KeepBetter
from samq_onnx.methods.steps.keys import CentreKeys, FlipBimodalKeys
from samq_onnx.methods.steps.learn import LearnUnits
from samq_onnx.methods.steps.learn_scales import LearnScales
from samq_onnx.methods.steps.norms import ScaleNorms, input_rows
from samq_onnx.methods.steps.ranges import Ranges
from samq_onnx.methods.steps.reconstruct import Reconstruct
from samq_onnx.methods.steps.repair import RepairOutputs, RepairSettings
from samq_onnx.methods.steps.rotate import RotateStream
from samq_onnx.methods.steps.select import Select
from samq_onnx.methods.steps.spare import Spare

__all__ = [
    "AttentionRepairSettings",
    "BalanceOperands",
    "BestCodes",
    "BestOf",
    "CentreKeys",
    "ClipAs",
    "ClipByFocus",
    "FirstOf",
    "FlipBimodalKeys",
    "Gptq",
    "GptqSettings",
    "HybridInputs",
    "KeepBetter",
    "LearnScales",
    "LearnUnits",
    "Ranges",
    "Reconstruct",
    "RepairAttention",
    "RepairOutputs",
    "RepairSettings",
    "RotateStream",
    "ScaleNorms",
    "Select",
    "Spare",
    "input_rows",
]
