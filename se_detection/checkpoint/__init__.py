"""Weights files: conversion from other projects, the assumptions that a file carries, and strict loading."""

from .assumptions import WeightsAssumptions
from .convert import SOURCES, convert_state_dict
from .convert_input import convert_input

__all__ = ["SOURCES", "WeightsAssumptions", "convert_input", "convert_state_dict"]
