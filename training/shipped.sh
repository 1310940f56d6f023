#!/bin/sh
# Makes the shipped checkpoint `smalldepth`: render, train two teachers, predict depth for photographs, train the student, export.
#
#   training/shipped.sh
#
# Arguments are passed to all training runs, e.g. on a GPU:
#   training/shipped.sh --set precision=bf16-mixed --set data.workers=15
# The shipped student was trained with these arguments, its teachers without them on a CPU. The student starts from an earlier
# `smalldepth`, see config/training/shipped/student.yaml.
#
# To train on another machine, make a smaller copy of the data:
#   fadepth shrink data/shipped --mebibytes 20 --skip models labels --out small
# Copy `small` to data/shipped on that machine, and add the ImageNet weights. The copy contains the rendered scenes, so that machine
# does not need the 3D models.
#
# Needed files, which are not shipped; fadepth_core/assets/smalldepth.md lists sources and licences. Folders of pictures have the
# form of the data set "pictures" (fadepth_core/data/pictures.py).
#   data/shipped/tf_efficientnet_lite2.safetensors      ImageNet weights in timm's format
#   data/shipped/models/                                gazebo_models and the worlds of aws-robotics, for the rendered scenes
#   data/shipped/measured/                              pictures with depth, a folder for each source; streets/ has 5 pictures
#   data/shipped/photos/{streets,rooms}/                pictures without depth, a folder for each source
# An interrupted run continues where it stopped.
set -eu
cd "$(dirname "$0")/.."
DATA=data/shipped
RUNS=runs/shipped
PYTHON=${PYTHON:-python}
run() { "$PYTHON" training/run.py "$@"; }
resume() { [ ! -f "$1/state.pt" ] || echo --resume; }

pack() { # NAME COUNT HEIGHT WIDTH OPTION...
  name=$1 count=$2 height=$3 width=$4 set=$5
  shift 5
  options=$(printf -- '--option %s ' "$@")
  # A copy made by `fadepth shrink` contains the rendered scenes, but not the 3D models they were rendered from. Without the models,
  # only missing scenes that need no models are rendered.
  [ -d "$DATA/models" ] || { [ "$set" = synthetic ] && [ ! -f "$DATA/$name/index.json" ]; } || return 0
  # shellcheck disable=SC2086 # one word for each option
  run pack "$set" --count "$count" --size "$height" "$width" $options --option static=true --out "$DATA/$name"
}
pack streets 1600 144 468 synthetic preset=driving seed=7
pack rooms 800 216 288 synthetic preset=indoor seed=3
pack assets_streets 1200 144 468 assets "root=$DATA/models/gazebo_models" sky=false
pack assets_streets_tall 900 264 352 assets "root=$DATA/models/gazebo_models" sky=false seed=23
for world in small_house hospital bookstore small_warehouse; do
  pack "assets_rooms/$world" 375 288 384 assets "root=$DATA/models" "world=$world" sky=false
done
# Scenes for validation, which no run trains on.
pack validation/streets 30 144 468 synthetic preset=driving seed=2
pack validation/rooms 20 216 288 synthetic preset=indoor seed=2

fit() { # NAME ARGUMENT...: train config/training/shipped/NAME.yaml
  name=$1
  shift
  # shellcheck disable=SC2046 # `resume` prints nothing or one word
  run fit --config "config/training/shipped/$name.yaml" "$@" $(resume "$RUNS/$name")
}
fit teacher "$@"
fit teacher_streets "$@"
# Of tall pictures of streets, only the middle rows are labelled (fadepth_core/training/labels.py).
run label "$DATA/photos/streets" --teacher "$RUNS/teacher_streets/depth.safetensors" --out "$DATA/labels/streets" --aspect 2
run label "$DATA/photos/rooms" --teacher "$RUNS/teacher/depth.safetensors" --out "$DATA/labels/rooms"
fit student "$@"
run export "$RUNS/student/best.safetensors" --out "$RUNS/plain.safetensors"
# Only depth that is known: the confidence head ranks errors better than with the teachers' labels, whose errors it would learn
# (AUSE of AbsRel on the validation pictures: 0.122 instead of 0.143).
known=
for name in assets_rooms assets_streets assets_streets_tall streets rooms measured; do
  [ ! -d "$DATA/$name" ] || known="$known $DATA/$name"
done
# shellcheck disable=SC2086 # one word for each folder
run confidence "$RUNS/plain.safetensors" --data $known --out "$RUNS/smalldepth.safetensors"
echo "$RUNS/smalldepth.safetensors"
