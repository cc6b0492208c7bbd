"""python predict_minitl.py MODEL.npz PHOTO"""

import sys

import minitl

answer = minitl.load(sys.argv[1]).predict([sys.argv[2]])[0]
print(answer.classes[0], flush=True)
