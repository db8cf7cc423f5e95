"""placeholder"""

import argparse


def build_parser():
    return argparse.ArgumentParser()
