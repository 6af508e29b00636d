"""Online: networks trained together teach each other."""

from __future__ import annotations

from kdschemes.config.schemes import online as options
from kdschemes.schemes.base import Builders
from kdschemes.schemes.online.clilr import clilr
from kdschemes.schemes.online.codistillation import codistillation
from kdschemes.schemes.online.dml import dml
from kdschemes.schemes.online.ffl import ffl
from kdschemes.schemes.online.kdcl import kdcl
from kdschemes.schemes.online.okddip import okddip
from kdschemes.schemes.online.one import one
from kdschemes.schemes.online.pcl import pcl
from kdschemes.schemes.online.switokd import switokd

ONLINE: Builders = {
    options.OnlineDML: dml,
    options.OnlineCodistillation: codistillation,
    options.OnlineKDCL: kdcl,
    options.OnlineSwitOKD: switokd,
    options.OnlineCLILR: clilr,
    options.OnlineONE: one,
    options.OnlineOKDDip: okddip,
    options.OnlineFFL: ffl,
    options.OnlinePCL: pcl,
}
