"""What a generator is trained for; `objective` in a configuration chooses.

regression.py  the error of one estimate: E[X | Y], the paper's "Ours-MSE"
energy.py      proper scores of several samples of each crop: the sampler that ships
game.py        the paper's game against a critic, equations 8 to 10

Each file holds its configuration and its whole training step; losses.py and scores.py have the terms' formulas.
"""
