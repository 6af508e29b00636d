# shellcheck shell=bash
# Settings of a site. Copy it to slurm/site.sh and fill it in; every script here and `kdschemes study submit` read that file.
# Whatever is left out stays SLURM's default.

# What to ask SLURM for. sbatch reads these variables, `kdschemes study submit` sets them; for a plain sbatch of your own,
# read the file before: `. slurm/site.sh && sbatch slurm/train.sbatch ...`. The command line has the last word.
export SBATCH_PARTITION=gpu
export SBATCH_ACCOUNT=my_project
export SBATCH_TIMELIMIT=04:00:00
export SBATCH_GPUS_PER_NODE=4

# What a job needs before it starts: modules, an environment. Called once in the batch script, for all nodes.
site_environment() {
    module load python/3.11 cuda/12
    . "$HOME/environments/kdschemes/bin/activate"
}

# What is put before the command on each node: a container that sees this repository, the data and the runs.
# container=(apptainer exec --nv --bind /scratch "$HOME/images/kdschemes.sif")

# More options of srun.
# srun_options=(--cpu-bind=none)

# Processes of a node: as many as it has GPUs in this job, or 1 on CPU. Another number:
# export KDSCHEMES_PROCESSES_PER_NODE=2

# The network that nodes talk through, where the first one found is the wrong one.
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
