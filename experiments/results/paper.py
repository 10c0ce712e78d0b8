"""What the tables put beside the results: the rows of the paper, its figures and those to reach."""

# Config -> what it distils, and the paper's figures in % (arXiv 1811.10959).
ROWS = {
    "digits_fixed_init": ("digits, LeNet, fixed init", "not in the paper"),
    "mnist_fixed_init": ("MNIST, LeNet, fixed init", "93.8"),
    "mnist_random_init": ("MNIST, LeNet, random init", "79.5 ± 8.1"),
    "mnist_soft_labels": ("MNIST, LeNet, fixed init, soft labels", "later work: 96"),
    "mnist_random_soft_labels": (
        "MNIST, LeNet, random init, soft labels, momentum", "hard labels: 79.5 ± 8.1"),
    "mnist_random_window": (
        "MNIST, ConvNet, random init, random windows, soft labels", "later work: 98.9"),
    "cifar10_fixed_init": ("CIFAR-10, AlexCifarNet, fixed init", "54.0"),
    "cifar10_random_init": ("CIFAR-10, AlexCifarNet, random init", "36.8 ± 1.2"),
    "cifar10_soft_labels": (
        "CIFAR-10, AlexCifarNet, random init, soft labels", "hard labels: 36.8 ± 1.2"),
    "cifar10_random_window": ("CIFAR-10, ConvNet, random windows, soft labels", "later work: 69.4"),
    "mnist_to_usps_pretrained": ("MNIST → USPS, random pre-trained", "90.4 → 95.4 ± 1.8"),
    "mnist_to_usps_fixed_pretrained": ("MNIST → USPS, fixed pre-trained", "90.4 → 97.9"),
    "usps_to_mnist_pretrained": ("USPS → MNIST, random pre-trained", "67.5 → 92.7 ± 1.4"),
    "usps_to_mnist_fixed_pretrained": ("USPS → MNIST, fixed pre-trained", "67.5 → 93.2"),
    "svhn_small_to_mnist_pretrained": (
        "svhn_small (a small subset) → MNIST, random pre-trained",
        "SVHN: 51.6 → 85.2 ± 4.7"),
    "svhn_small_to_mnist_fixed_pretrained": (
        "svhn_small (a small subset) → MNIST, fixed pre-trained", "SVHN: 51.6 → 96.2"),
    "digits_to_mnist_pretrained": ("digits → MNIST, random pre-trained", "not in the paper"),
    "digits_to_mnist_fixed_pretrained": ("digits → MNIST, fixed pre-trained", "not in the paper"),
    "voc_alexnet": ("ImageNet → PASCAL-VOC, AlexNet", "70.75"),
    "cub200_alexnet": ("ImageNet → CUB-200, AlexNet", "38.76"),
    "mnist_poisoning": ("MNIST 0 → 1, one step, random pre-trained", "71.4 ± 29.6 of class 0"),
    "mnist_poisoning_bounded": (
        "MNIST 0 → 1, within epsilon of real images, real ones beside, random pre-trained",
        "not in the paper"),
    "trec_random_init": ("TREC questions, text convolution, random init", "not in the paper"),
    "breast_cancer_random_init": ("breast cancer, MLP, random init", "not in the paper"),
    "wine_random_init": ("wine, MLP, random init", "not in the paper"),
    "diabetes_random_init": ("diabetes, a number, MLP, random init", "not in the paper"),
    "diabetes_linear": ("diabetes, linear, random init (section 3.3)", "not in the paper"),
    "cifar10_poisoning": ("CIFAR-10 plane → car, random pre-trained", "45.9 ± 18.1 of class 0"),
}
NOT_RUN = {
    "voc_alexnet": "not run: needs ImageNet weights and the photos",
    "cub200_alexnet": "not run: needs ImageNet weights and the photos",
    "cifar10_random_window": "not run: needs a GPU",
    "mnist_random_window": "not run in full: needs a GPU",
}
# Target of an adaptation -> the pool whose held-out networks were trained on all of it.
FULL_TARGET = {"usps": "usps_lenet_pool", "mnist": "mnist_lenet_pool"}
# Random real, optimized real, k-means, average real, 1-NN on the first and the third.
BASELINES = {
    "mnist_random_init": (
        "68.6 ± 9.8", "73.0 ± 7.6", "76.4 ± 9.5", "77.1 ± 2.7", "71.5 ± 2.1", "92.2 ± 0.1"),
    "cifar10_random_init": (
        "21.3 ± 1.5", "23.4 ± 1.3", "22.5 ± 3.1", "22.3 ± 0.7", "18.8 ± 1.3", "29.4 ± 0.3"),
}
# Row of the bench -> ratio to reach, ratio to aim for, seconds of the authors' release.
BENCH_ROWS = {
    "mnist_fixed_n1": ("1.5", "3", "0.072"),
    "mnist_random_n1": ("2", "4", "0.15-0.19"),
    "mnist_random_n4": ("2", "5", "0.61"),
    "cifar10_fixed_n1": ("1.5", "3", "3.3"),
    "cifar10_random_n4": ("1.5", "3", "12.9"),
}
