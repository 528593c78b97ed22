#include <fastlr/top_eigenvector.hpp>

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <utility>
#include <vector>

#include <fastlr/random.hpp>

#include "checks.hpp"
#include "row_block.hpp"

namespace fastlr {
namespace {

constexpr double kUnknownNumber = std::numeric_limits<double>::quiet_NaN();

double norm_of(const at::Tensor& x) { return at::linalg_vector_norm(x).item<double>(); }

at::Tensor row_energies(const at::Tensor& rows) { return at::linalg_vector_norm(rows, 2, at::IntArrayRef(1)).square(); }

// Visits the rows in double precision, `height` at a time however they are blocked, times a power of two with which
// squares are in range. Where that changes, `rescale` is told by what squares gathered before are to be multiplied.
class ScaledRows {
 public:
  ScaledRows(const RowBlocks& rows, int64_t height) : rows_(rows), height_(height) {}

  void read(const std::function<void(const at::Tensor&)>& visit, const std::function<void(double)>& rescale) {
    at::Tensor waiting;
    rows_.read([&](int64_t, const at::Tensor& block) {
      int64_t row = 0;
      if (waiting.defined()) {
        row = std::min(height_ - waiting.size(0), block.size(0));
        waiting = at::cat({waiting, block.narrow(0, 0, row)});
        if (waiting.size(0) < height_) return;
        take(waiting, visit, rescale);
        waiting = at::Tensor();
      }
      for (; row + height_ <= block.size(0); row += height_) take(block.narrow(0, row, height_), visit, rescale);
      // A source may use the memory of its block again.
      if (row < block.size(0)) waiting = block.narrow(0, row, block.size(0) - row).clone();
    });
    if (waiting.defined()) take(waiting, visit, rescale);
  }

  int64_t count() const { return count_; }
  double unscaled(double size) const { return std::ldexp(size, -exponent_); }

 private:
  static constexpr int kSlack = 60, kMost = 250;  // binary digits

  void take(const at::Tensor& part, const std::function<void(const at::Tensor&)>& visit,
            const std::function<void(double)>& rescale) {
    check_interrupt();
    const double magnitude = finite_magnitude({part, std::nullopt, count_}, "top_eigenvector_stream");
    count_ += part.size(0);
    if (magnitude > largest_) {
      largest_ = magnitude;
      const int exponent = scale_exponent(magnitude);
      if (!begun_) {
        exponent_ = std::abs(exponent) <= kSlack ? 0 : exponent;
        begun_ = true;
      } else if (exponent_ - exponent > kSlack) {
        // Squares of what came before are smaller: at worst they are nothing beside these.
        rescale(std::ldexp(1.0, -2 * std::min(exponent_ - exponent, kMost)));
        exponent_ = exponent;
      }
    }
    if (magnitude > 0) visit(scaled(part.to(double_type(part)), exponent_));
  }

  const RowBlocks& rows_;
  int64_t height_;
  int64_t count_ = 0;
  double largest_ = 0;
  int exponent_ = 0;
  bool begun_ = false;
};

at::Tensor random_start(const RowBlocks& rows, int64_t seed) {
  const auto start = gaussian(rows.columns(), 1, seed, 0, rows.options()).squeeze(1);
  return start.to(double_type(start));
}

// Unit norm, and the largest entry real and positive.
at::Tensor as_result(const at::Tensor& vector, const RowBlocks& rows) {
  if (vector.numel() == 0) return vector.to(rows.options().dtype());
  const auto unit = vector / norm_of(vector);
  const auto phase = at::sgn(unit[unit.abs().argmax()]);
  return (unit * at::conj_physical(phase)).to(rows.options().dtype());
}

class RandomOrder {
 public:
  RandomOrder(const at::Tensor& start, int64_t most_heavy)
      : most_heavy_(most_heavy),
        v_(start / norm_of(start)),
        product_(at::zeros_like(start)),
        heavy_(at::empty({0, start.size(0)}, start.options())),
        energies_(at::empty({0}, start.options().dtype(at::kDouble))) {}

  void rescale(double factor) {
    for (double* number : {&total_, &light_, &block_, &before_, &largest_light_, &sum_}) *number *= factor;
    sum_of_squares_ *= factor * factor;
    product_ *= factor;
    heavy_ *= std::sqrt(factor);
    energies_ *= factor;
    seen_.eigenvalue *= factor;
  }

  void add(const at::Tensor& rows) {
    const auto energies = row_energies(rows);
    total_ += energies.sum().item<double>();
    const auto large = energies >= threshold();
    if (light_rows_ == 0 || large.all().item<bool>()) {
      keep(rows, energies);
    } else if (large.any().item<bool>()) {
      keep(rows.index({large}), energies.index({large}));
      multiply(rows.index({large.logical_not()}), energies.index({large.logical_not()}));
    } else {
      multiply(rows, energies);
    }
    release();
    if (block_ > 0 && block_ >= before_ && in_block_ >= kLeastRows) step();
  }

  // Whatever is left makes another step, or shows how good the vector is.
  TopEigenvector finish() {
    if (light_ == 0 && total_ > 0) return from_heavy_rows();
    if (block_ >= before_ / 4 && block_ > 0) {
      step();
    } else if (block_ > 0) {
      seen_ = look();
    }
    return {.vector = v_,
            .singular_value = std::sqrt(seen_.eigenvalue),
            .std_error = seen_.std_error,
            .residual = seen_.residual,
            .growth = kUnknownNumber,
            .rate = kUnknownNumber,
            .rows = 0,
            .blocks = blocks_,
            .heavy = count_heavy(),
            .complete = largest_light_ < threshold() || total_ == 0};
  }

 private:
  static constexpr int64_t kLeastRows = 16;

  struct Seen {
    double eigenvalue, std_error, residual;
  };

  double threshold() const {
    const double n = static_cast<double>(v_.size(0));
    return total_ / (n * std::max(1.0, std::log2(n)));
  }

  int64_t count_heavy() const { return (energies_ >= threshold()).sum().item<int64_t>(); }

  void keep(const at::Tensor& rows, const at::Tensor& energies) {
    heavy_ = at::cat({heavy_, rows});
    energies_ = at::cat({energies_, energies});
  }

  // Multiplies the rows that need no longer be kept, once there have been more than may be. What is light goes at once:
  // a large row that waits would change what later blocks are a sample of.
  void release() {
    if (light_rows_ == 0) {
      if (heavy_.size(0) <= most_heavy_) return;
      begin();
    }
    const int64_t all = heavy_.size(0), count = std::min(count_heavy(), most_heavy_);
    if (count == all) return;
    const auto order = energies_.argsort(/*stable=*/true, /*dim=*/0, /*descending=*/true);
    const auto kept = order.narrow(0, 0, count), released = order.narrow(0, count, all - count);
    multiply(heavy_.index_select(0, released), energies_.index_select(0, released));
    heavy_ = heavy_.index_select(0, kept);
    energies_ = energies_.index_select(0, kept);
  }

  // The leading vector of the first rows, and a tenth of the random one for what they do not show.
  void begin() {
    v_ = leading_triplet().vector + v_ / 10;
    v_ /= norm_of(v_);
  }

  struct Triplet {
    at::Tensor vector;
    double value;
  };
  Triplet leading_triplet() const {
    const auto [U, S, Vh] = at::linalg_svd(heavy_, /*full_matrices=*/false);
    return {at::conj_physical(Vh[0]), S[0].item<double>()};
  }

  void multiply(const at::Tensor& rows, const at::Tensor& energies) {
    const double energy = energies.sum().item<double>();
    largest_light_ = std::max(largest_light_, energies.max().item<double>());
    light_ += energy;
    block_ += energy;
    in_block_ += rows.size(0);
    light_rows_ += rows.size(0);
    const auto along = at::mv(rows, v_);
    product_ += at::mv(rows.mH(), along);
    const auto squares = squared_magnitude(along);
    sum_ += squares.sum().item<double>();
    sum_of_squares_ += squares.square().sum().item<double>();
  }

  // M v for the v that the block has been multiplied by: the light rows as many times as there have been of their mass.
  at::Tensor image() const { return product_ * (light_ / block_) + at::mv(heavy_.mH(), at::mv(heavy_, v_)); }

  // ρ = vᴴ M v and how far off it is, v being independent of the block: rows drawn without replacement.
  Seen look() const {
    const auto Mv = image();
    const double rho = at::real(at::vdot(v_, Mv)).item<double>();
    const double count = static_cast<double>(in_block_), mean = sum_ / count;
    const double variance = std::max(0.0, sum_of_squares_ / count - mean * mean);
    const double left = std::max(0.0, 1 - count / static_cast<double>(light_rows_));
    if (!(rho > 0)) return {0, 0, 0};
    return {rho, light_ / block_ * std::sqrt(count * variance * left) / rho, norm_of(Mv - rho * v_) / rho};
  }

  void step() {
    seen_ = look();
    // The first vector was made of the rows of the first block.
    if (blocks_ == 0) seen_.std_error = seen_.residual = kUnknownNumber;
    const auto Mv = image();
    const double norm = norm_of(Mv);
    if (norm > 0) v_ = Mv / norm;
    before_ = light_;
    block_ = sum_ = sum_of_squares_ = 0;
    in_block_ = 0;
    product_ = at::zeros_like(product_);
    ++blocks_;
  }

  // All rows are at hand.
  TopEigenvector from_heavy_rows() const {
    const auto [vector, value] = leading_triplet();
    return {.vector = vector,
            .singular_value = value,
            .std_error = 0,
            .residual = 0,
            .growth = kUnknownNumber,
            .rate = kUnknownNumber,
            .rows = 0,
            .blocks = 0,
            .heavy = count_heavy(),
            .complete = true};
  }

  int64_t most_heavy_;
  at::Tensor v_, product_;
  at::Tensor heavy_, energies_;
  double total_ = 0, light_ = 0, block_ = 0, before_ = 0, largest_light_ = 0;
  double sum_ = 0, sum_of_squares_ = 0;  // of |a v|^2 over the rows of the block
  int64_t in_block_ = 0, light_rows_ = 0, blocks_ = 0;
  Seen seen_{0, 0, 0};
};

class Oja {
 public:
  explicit Oja(const at::Tensor& start) : start_(start) {}

  void rescale(double factor) {
    total_ *= factor;
    // A rate is the inverse of a square.
    std::map<int, Track> tracks;
    const int shift = static_cast<int>(std::lround(std::log2(factor)));
    for (auto& [exponent, track] : tracks_) tracks.emplace(exponent - shift, std::move(track));
    tracks_ = std::move(tracks);
  }

  void add(const at::Tensor& rows) {
    total_ += row_energies(rows).sum().item<double>();
    follow();
    std::vector<double> rates;
    std::vector<at::Tensor> vectors;
    for (const auto& [exponent, track] : tracks_) {
      rates.push_back(std::ldexp(1.0, exponent));
      vectors.push_back(track.vector);
    }
    // c_i = a_i v before row i: (I - η L) c = A v, L the strictly lower triangle of A Aᴴ.
    const auto eta = at::tensor(rates, at::kDouble).to(rows.device());
    auto V = at::stack(vectors, 1);
    const auto L = at::mm(rows, rows.mH()).tril(-1);
    const auto system = at::eye(rows.size(0), L.options()) - eta.view({-1, 1, 1}) * L;
    const auto C = at::linalg_solve_triangular(system, at::mm(rows, V).t().unsqueeze(2), /*upper=*/false,
                                               /*left=*/true, /*unitriangular=*/true);
    V += at::mm(rows.mH(), C.squeeze(2).t() * eta);
    const auto norms = at::linalg_vector_norm(V, 2, at::IntArrayRef(0));
    V /= norms;
    const auto logs = norms.log().cpu();
    int64_t index = 0;
    for (auto& [exponent, track] : tracks_) {
      track.vector = V.select(1, index);
      track.growth += logs[index++].item<double>();
    }
  }

  TopEigenvector finish() const {
    TopEigenvector found{.vector = start_,
                         .singular_value = 0,
                         .std_error = kUnknownNumber,
                         .residual = kUnknownNumber,
                         .growth = 0,
                         .rate = 0,
                         .rows = 0,
                         .blocks = 0,
                         .heavy = 0,
                         .complete = total_ == 0};
    for (auto it = tracks_.begin(); it != tracks_.end() && !found.complete; ++it) {
      const double rate = std::ldexp(1.0, it->first);
      found.vector = it->second.vector;
      found.growth = it->second.growth;
      found.rate = rate * total_;
      found.complete = found.growth >= target();
      // The growths of two rates differ by what the start has no part in.
      const auto slower = it == tracks_.begin() ? it : std::prev(it);
      const double eigenvalue = slower == it
                                    ? found.growth / rate
                                    : (found.growth - slower->second.growth) / (rate - std::ldexp(1.0, slower->first));
      found.singular_value = std::sqrt(std::max(0.0, eigenvalue));
    }
    return found;
  }

 private:
  struct Track {
    at::Tensor vector;
    double growth;  // logarithm
  };

  static constexpr double kLateStart = 1.0 / 16;  // η ‖A‖_F^2 of the rows that a rate may miss

  double log_n() const { return std::log(static_cast<double>(std::max<int64_t>(2, start_.size(0)))); }
  double target() const { return 2 * log_n() + 4; }

  // Rates that are too large from now on go, and smaller ones begin.
  void follow() {
    const double n = static_cast<double>(start_.size(0));
    const int least = static_cast<int>(std::floor(std::log2(kLateStart / total_)));
    const int most = static_cast<int>(std::ceil(std::log2(4 * target() * n / total_)));
    tracks_.erase(tracks_.upper_bound(most), tracks_.end());
    const bool first = tracks_.empty();
    for (int exponent = first ? most : tracks_.begin()->first - 1; exponent >= least; --exponent)
      tracks_.emplace(exponent, Track{start_ / norm_of(start_), 0.0});
  }

  at::Tensor start_;
  double total_ = 0;
  std::map<int, Track> tracks_;  // by the binary logarithm of the rate
};

template <typename Algorithm>
TopEigenvector run(Algorithm algorithm, const RowBlocks& rows, int64_t height) {
  ScaledRows reader(rows, height);
  reader.read([&](const at::Tensor& part) { algorithm.add(part); }, [&](double factor) { algorithm.rescale(factor); });
  auto found = algorithm.finish();
  found.vector = as_result(found.vector, rows);
  found.rows = reader.count();
  found.singular_value = reader.unscaled(found.singular_value);
  return found;
}

}  // namespace

TopEigenvector random_order_eigenvector(const RowBlocks& rows, int64_t most_heavy, int64_t seed) {
  constexpr int64_t height = 512;
  return run(RandomOrder(random_start(rows, seed), most_heavy), rows, height);
}

TopEigenvector oja_eigenvector(const RowBlocks& rows, int64_t seed) {
  // The largest rate makes a vector grow by 10^4 a row or so.
  constexpr int64_t height = 32;
  return run(Oja(random_start(rows, seed)), rows, height);
}

}  // namespace fastlr
