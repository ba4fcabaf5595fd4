#include "command.h"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdlib>

namespace reap::guest {

namespace {

const char* const kTextWords[] = {"FILE", "INPUT", "NAME", "HEX", "LIST", "SOCKET", "COMMAND"};

bool is_placeholder(const std::string& word) {
  return std::all_of(word.begin(), word.end(),
                     [](unsigned char c) { return std::isupper(c) || c == '_'; });
}

// `word` is the usage's word for this argument, without brackets and dots.
Error check_value(const std::string& word, const std::string& value) {
  if (is_placeholder(word)) {
    if (std::find(std::begin(kTextWords), std::end(kTextWords), word) != std::end(kTextWords)) {
      return {};
    }
    uint64_t number;
    if (parse_number(value, &number)) return {};
    return {word + " must be a number, got '" + value + "'", -EINVAL};
  }
  const std::vector<std::string> choices = split(word, '|');
  if (std::find(choices.begin(), choices.end(), value) != choices.end()) return {};
  return {"expected " + word + ", got '" + value + "'", -EINVAL};
}

struct Grammar {
  std::vector<std::string> positions;
  size_t required = 0;
  bool repeats_last = false;
  bool takes_rest = false;
  std::map<std::string, std::string> options;
};

Grammar parse_usage(const std::string& usage) {
  Grammar grammar;
  for (std::string word : split(usage, ' ')) {
    const bool optional = word.front() == '[';
    if (optional) word = word.substr(1, word.size() - 2);
    if (const size_t equals = word.find('='); equals != std::string::npos) {
      grammar.options[word.substr(0, equals)] = word.substr(equals + 1);
      continue;
    }
    if (word.size() > 3 && word.compare(word.size() - 3, 3, "...") == 0) {
      word.resize(word.size() - 3);
      grammar.repeats_last = true;
    }
    grammar.takes_rest = word == "COMMAND" || word == "PATH";
    grammar.positions.push_back(word);
    if (!optional) grammar.required++;
  }
  return grammar;
}

// Not a constant: the tables are initialized in other files.
std::vector<const std::vector<Command>*> tables() {
  return {&kMemoryCommands,  &kTouchCommands, &kGuestCommands,
          &kProcessCommands, &kFileCommands,  &kMappingCommands};
}

}  // namespace

uint64_t Call::number(size_t i) const {
  uint64_t number = 0;
  parse_number(arguments_[i], &number);
  return number;
}

std::string Call::text(const std::string& option, const std::string& fallback) const {
  const auto found = options_.find(option);
  return found == options_.end() ? fallback : found->second;
}

uint64_t Call::number(const std::string& option, uint64_t fallback) const {
  uint64_t number = fallback;
  parse_number(text(option, ""), &number);
  return number;
}

Error parse_call(const std::string& usage, const std::string& line, Call* call) {
  const Grammar grammar = parse_usage(usage);
  const std::vector<std::string> words = split(line, ' ');
  for (size_t i = 0; i < words.size(); i++) {
    const std::string& word = words[i];
    const size_t place = call->arguments_.size();
    if (grammar.takes_rest && place + 1 == grammar.positions.size()) {
      std::string rest = word;
      while (++i < words.size()) rest += " " + words[i];
      call->arguments_.push_back(rest);
      break;
    }
    const size_t equals = word.find('=');
    const auto option =
        grammar.options.find(equals == std::string::npos ? "" : word.substr(0, equals));
    if (option != grammar.options.end()) {
      const std::string value = word.substr(equals + 1);
      if (Error error = check_value(option->second, value)) return error;
      call->options_[option->first] = value;
      continue;
    }
    if (place >= grammar.positions.size() && !grammar.repeats_last) {
      return {"unexpected argument '" + word + "'", -EINVAL};
    }
    if (Error error =
            check_value(grammar.positions[std::min(place, grammar.positions.size() - 1)], word)) {
      return error;
    }
    call->arguments_.push_back(word);
  }
  if (call->arguments_.size() < grammar.required) {
    return {"missing " + grammar.positions[call->arguments_.size()], -EINVAL};
  }
  return {};
}

bool parse_number(const std::string& text, uint64_t* number) {
  if (text.empty() || !std::isdigit(static_cast<unsigned char>(text[0]))) return false;
  const bool is_hex = text.compare(0, 2, "0x") == 0;
  char* end = nullptr;
  errno = 0;
  const uint64_t value = std::strtoull(text.c_str(), &end, is_hex ? 16 : 10);
  if (errno != 0 || *end != '\0') return false;
  *number = value;
  return true;
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  size_t start = 0;
  while (start < text.size()) {
    const size_t end = std::min(text.find(separator, start), text.size());
    if (end > start) parts.push_back(text.substr(start, end - start));
    start = end + 1;
  }
  return parts;
}

std::string list_commands() {
  std::string lines;
  for (const auto* table : tables()) {
    for (const auto& [name, usage, run] : *table) {
      lines += std::string("  ") + name + (*usage ? " " : "") + usage + "\n";
    }
  }
  return lines;
}

Answer execute(Vmm& vmm, const std::string& line) {
  for (const auto* table : tables()) {
    for (const Command& command : *table) {
      const std::string name = command.name;
      if (line.compare(0, name.size(), name) != 0) continue;
      if (line.size() > name.size() && line[name.size()] != ' ') continue;
      Call call;
      if (Error error = parse_call(command.usage, line.substr(name.size()), &call)) {
        error.message += "; usage: " + name + " " + command.usage;
        return error;
      }
      return command.run(vmm, call);
    }
  }
  return Error{"unknown command '" + line + "'", -EINVAL};
}

}  // namespace reap::guest
