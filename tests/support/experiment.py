"""A small experiment's recipe."""

RECIPE = """
name: pair
title: Two ranks
table: IX
figure: "9"
common: {optim.lr: 1.0e-3, train.batch: 2, train.epochs: 3}
trials:
  small: {model.vit.lora.r: 2}
  large: {model.vit.lora.r: 8, train.batch: 4}
tiny:
  config: nowhere.yaml
  common: {train.epochs: 5, optim.clip: 2.0}
"""
