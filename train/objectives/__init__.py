"""Training objectives; the configuration key `objective` selects one. Each file holds its configuration and its whole
training step; losses.py, energy_score.py, spectra.py and distribution.py hold the formulas of the terms.

regression.py  mean squared error of one estimate: E[X | Y], the paper's "Ours-MSE"
energy.py      proper scores of several samples of each crop: the sampler that ships
game.py        the paper's game against a critic (arXiv 2211.11827, equations 8 to 10)
"""
