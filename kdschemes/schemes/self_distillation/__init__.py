"""Self: one network teaches itself."""

from __future__ import annotations

from kdschemes.config.schemes import self_distillation as options
from kdschemes.schemes.base import Builders
from kdschemes.schemes.self_distillation.ban import ban
from kdschemes.schemes.self_distillation.byot import byot
from kdschemes.schemes.self_distillation.cskd import cskd
from kdschemes.schemes.self_distillation.ddgsd import ddgsd
from kdschemes.schemes.self_distillation.dlb import dlb
from kdschemes.schemes.self_distillation.frskd import frskd
from kdschemes.schemes.self_distillation.label_based import own_labels
from kdschemes.schemes.self_distillation.mean_teacher import mean_teacher
from kdschemes.schemes.self_distillation.multi_exit import multi_exit
from kdschemes.schemes.self_distillation.pskd import pskd
from kdschemes.schemes.self_distillation.sad import sad
from kdschemes.schemes.self_distillation.tfkd_self import tfkd_self
from kdschemes.schemes.self_distillation.zipf import zipf

SELF: Builders = {
    options.SelfBYOT: byot,
    options.SelfMultiExit: multi_exit,
    options.SelfSAD: sad,
    options.SelfFRSKD: frskd,
    options.SelfBAN: ban,
    options.SelfTfKD: tfkd_self,
    options.SelfDDGSD: ddgsd,
    options.SelfCSKD: cskd,
    options.SelfPSKD: pskd,
    options.SelfDLB: dlb,
    options.SelfMeanTeacher: mean_teacher,
    options.SelfZipf: zipf,
    options.SelfUSKD: own_labels,
    options.SelfTfKDReg: own_labels,
}
