"""Self: one network teaches itself."""

from __future__ import annotations

from kdschemes.config.schemes import self_exits, self_generations, self_single
from kdschemes.schemes.base import Builders
from kdschemes.schemes.self_distillation.exits import byot
from kdschemes.schemes.self_distillation.frskd import frskd
from kdschemes.schemes.self_distillation.generations import ban, tfkd_self
from kdschemes.schemes.self_distillation.labels import own_labels
from kdschemes.schemes.self_distillation.multi_exit import multi_exit
from kdschemes.schemes.self_distillation.past import dlb, ema, pskd
from kdschemes.schemes.self_distillation.sad import sad
from kdschemes.schemes.self_distillation.views import cskd, ddgsd
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
