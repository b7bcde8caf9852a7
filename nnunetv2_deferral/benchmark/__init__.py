"""Stock nnU-Net and deferral trainings on the same folds: what is missing, running it, checking it, comparing it.

experiment.py    what is compared on what, and where nnU-Net keeps it
trainers.py      the classes behind trainers' names
studies.py       the paper's ablation, grid and scalability tables as trainers and plans
plans.py         plans that differ from others in the deferral block alone
state.py         how far the training of a fold has come
training.py      one training as a task; running.py runs many here, cluster.py on SLURM
verification.py  whether everyone had the same cases, references, plans and labels
scores.py        masks to scores; comparison.py scores to intervals and differences
timing.py        what training and prediction take
tables.py        Markdown and CSV
"""
