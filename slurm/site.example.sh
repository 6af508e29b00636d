# shellcheck shell=bash
# A site's settings. Copy this file to slurm/site.sh and fill it in; every script here and `kdschemes study submit` read it.
# Anything left out keeps SLURM's default.

# What to request from SLURM. sbatch reads these variables, and `kdschemes study submit` sets them; before a plain sbatch,
# source the file: `. slurm/site.sh && sbatch slurm/train.sbatch ...`. The command line takes precedence.
export SBATCH_PARTITION=gpu
export SBATCH_ACCOUNT=my_project
export SBATCH_TIMELIMIT=04:00:00
export SBATCH_GPUS_PER_NODE=4

# What a job needs before it starts: modules, an environment. Called once, in the batch script, for all nodes.
site_environment() {
    module load python/3.11 cuda/12
    . "$HOME/environments/kdschemes/bin/activate"
}

# Prefix of the command on each node: a container that can access this repository, the data and the runs.
# container=(apptainer exec --nv --bind /scratch "$HOME/images/kdschemes.sif")

# Additional options for srun.
# srun_options=(--cpu-bind=none)

# Processes per node, if not one per GPU of the job (or 1 on CPU):
# export KDSCHEMES_PROCESSES_PER_NODE=2

# The network interface for communication between nodes, if the first one found is wrong.
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
