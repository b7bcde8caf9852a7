"""Comparison of stock nnU-Net and deferral trainings on the same folds.

preparation.py   checks before training
trainers.py      trainer classes by name
studies.py       the paper's ablation, grid and scalability tables as trainers and plans
plans.py         plans that differ from others in the deferral block only
state.py         progress of a fold
training.py      one training as a task; running.py runs many locally, cluster.py on SLURM
verification.py  check that all methods had the same cases, references, plans and labels
scores.py        masks to scores; comparison.py scores to intervals and differences
timing.py        duration of training and prediction
"""
