"""Online: networks trained together teach each other."""

from __future__ import annotations

from kdschemes.config.schemes import online as branches
from kdschemes.config.schemes import online as options
from kdschemes.schemes.base import Builders
from kdschemes.schemes.online.clilr import clilr
from kdschemes.schemes.online.dml import dml
from kdschemes.schemes.online.ffl import ffl
from kdschemes.schemes.online.kdcl import kdcl
from kdschemes.schemes.online.mean import mean
from kdschemes.schemes.online.okddip import okddip
from kdschemes.schemes.online.one import one
from kdschemes.schemes.online.pcl import pcl
from kdschemes.schemes.online.switokd import switokd

ONLINE: Builders = {
    options.OnlineDML: dml,
    options.OnlineMean: mean,
    options.OnlineKDCL: kdcl,
    options.OnlineSwitOKD: switokd,
    branches.OnlineCLILR: clilr,
    branches.OnlineONE: one,
    branches.OnlineOKDDip: okddip,
    branches.OnlineFFL: ffl,
    branches.OnlinePCL: pcl,
}
