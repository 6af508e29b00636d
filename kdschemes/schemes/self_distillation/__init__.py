"""Self: one network teaches itself."""

from __future__ import annotations

from kdschemes.config.schemes import self_distillation as self_exits
from kdschemes.config.schemes import self_distillation as self_generations
from kdschemes.config.schemes import self_distillation as self_single
from kdschemes.schemes.base import Builders
from kdschemes.schemes.self_distillation.ban import ban, tfkd_self
from kdschemes.schemes.self_distillation.byot import byot
from kdschemes.schemes.self_distillation.cskd import cskd
from kdschemes.schemes.self_distillation.ddgsd import ddgsd
from kdschemes.schemes.self_distillation.dlb import dlb
from kdschemes.schemes.self_distillation.ema import ema
from kdschemes.schemes.self_distillation.frskd import frskd
from kdschemes.schemes.self_distillation.label_based import own_labels
from kdschemes.schemes.self_distillation.multi_exit import multi_exit
from kdschemes.schemes.self_distillation.pskd import pskd
from kdschemes.schemes.self_distillation.sad import sad
from kdschemes.schemes.self_distillation.zipf import zipf

SELF: Builders = {
    self_exits.SelfBYOT: byot,
    self_exits.SelfMultiExit: multi_exit,
    self_exits.SelfSAD: sad,
    self_exits.SelfFRSKD: frskd,
    self_generations.SelfBAN: ban,
    self_generations.SelfTfKD: tfkd_self,
    self_single.SelfDDGSD: ddgsd,
    self_single.SelfCSKD: cskd,
    self_single.SelfPSKD: pskd,
    self_single.SelfDLB: dlb,
    self_single.SelfEMA: ema,
    self_single.SelfZipf: zipf,
    self_single.SelfUSKD: own_labels,
    self_single.SelfTfKDReg: own_labels,
}
