#!/usr/bin/env bash
# Runs all entries of gpu_plan.md, also when some fail; logs, results and `summary.txt` go into the folder $1.
set -u
out=$(mkdir -p "$1" && cd "$1" && pwd)
data=$(cd "${DATA:-.}" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export DREAMDISTILL_DEVICE=${DREAMDISTILL_DEVICE:-cuda}
fast="synthesis.inversion.compile=true synthesis.inversion.precision=bfloat16 distill.compile=true distill.precision=bfloat16"
cifar="data.train=npz:$data/train.npz data.test=npz:$data/test.npz"

step() {
  local name=$1 started=$SECONDS
  shift
  case " ${STEPS:-$name} " in *" $name "*) ;; *) return ;; esac
  timeout --kill-after=20 "${LIMIT:-480}" "$@" >"$out/$name.log" 2>&1
  echo "$name $? $((SECONDS - started))" | tee -a "$out/summary.txt"
  cp benchmarks/results/*-cuda*.json "$out" 2>/dev/null
  for file in checkpoints/gpu_*/eval-*.json checkpoints/gpu_*/teacher.json; do
    [ -f "$file" ] && cp "$file" "$out/$(basename "$(dirname "$file")")-$(basename "$file")"
  done
}

chain() {
  step "$1" make PYTHON="$python" CONFIG="configs/$2.yaml" SET="name=gpu_$2 $cifar ${*:3}"
}

step tests "$python" -m pytest tests/synthesis/test_{terms,statistics,invert}.py tests/models/test_batch_norm.py \
  tests/data/test_views.py tests/distillation/test_{train,feature_matching}.py tests/evaluation/test_metrics.py tests/runtime/test_compiler.py \
  tests/test_configs.py --numprocesses 6 -p no:benchmark
step digits make PYTHON="$python" SET="name=gpu_digits"
torchrun="$python -m torch.distributed.run --standalone --nproc-per-node"
step nccl $torchrun 1 -m stages run --config configs/digits.yaml name=gpu_nccl
step nccl_two_ranks $torchrun 2 benchmarks/two_ranks.py
step too_many_processes make NPROC=2 PYTHON="$python" SET="name=gpu_too_many_processes"
step digits_compiled make PYTHON="$python" SET="name=gpu_digits_compiled $fast"
step resnet34_teacher make teacher PYTHON="$python" CONFIG=configs/cifar10_resnet34.yaml SET="name=gpu_cifar10_resnet34 $cifar"
resnet50="--source torchvision:resnet50 --num_classes 1000 --size_px 224 --batch_size 84"
step speed "$python" -m benchmarks.inversion
step speed_resnet50 "$python" -m benchmarks.inversion $resnet50 --steps 30
full="--source torchvision:resnet50 --num_classes 1000 --batch_size 200 --steps 20"
for side in 112 224; do
  step full_size_$side "$python" -m benchmarks.profile $full --size_px $side --label cuda-$side
done
inputs=${TMPDIR:-/tmp}/full_size_inputs && mkdir -p "$inputs"
step full_size_inputs "$python" -c "
import numpy, torch, torchvision
for name in ('resnet50', 'mobilenet_v2'):
    network = torchvision.models.get_model(name).train()
    with torch.no_grad():
        for _ in range(10):
            network(torch.rand(16, 3, 224, 224))
    torch.save(network.state_dict(), f'$inputs/{name}.pth')
numpy.savez('$inputs/images.npz', x=numpy.zeros((2, 224, 224, 3), 'uint8'), y=[0, 1])"
normalization=""
for network in teacher verifier; do
  normalization+=" $network.mean=[0.485,0.456,0.406] $network.std=[0.229,0.224,0.225]"
done
step full_size_estimate make estimate PYTHON="$python" CONFIG=configs/imagenet_resnet50.yaml SET="name=gpu_full_size \
  teacher.weights=$inputs/resnet50.pth verifier.weights=$inputs/mobilenet_v2.pth data.test=npz:$inputs/images.npz $normalization"
step choices "$python" -m benchmarks.choices
step profile "$python" -m benchmarks.profile
step profile_resnet50 "$python" -m benchmarks.profile $resnet50 --steps 30
resnet20="teacher.weights=$data/resnet20.safetensors verifier.weights=$data/resnet56.safetensors"
step storing "$python" -m benchmarks.storing --config configs/cifar10_resnet20.yaml --set $cifar $resnet20 \
  synthesis.inversion.phases.0.steps=120
for optimizer in sgd muon; do
  loop="-m benchmarks.distillation --num_workers 8 --optimizer $optimizer"
  step distillation_$optimizer "$python" $loop --label $optimizer
  step distillation_${optimizer}_graphs "$python" $loop --label $optimizer-graphs --cuda_graphs
done
for part in 1 2 3; do chain "resnet34_$part" cifar10_resnet34; done
chain resnet20 cifar10_resnet20 $resnet20
chain vgg11 cifar10_vgg11
chain wrn cifar10_wrn
